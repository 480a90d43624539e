"""arches-embedder: turns texts into vectors with all-MiniLM-L6-v2, for the API on the same host."""
