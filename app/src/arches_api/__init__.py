"""The Arches HTTP API."""
