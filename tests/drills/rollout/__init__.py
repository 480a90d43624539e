"""Requests from outside while the fleet is worked on, and the judgement of what became of them."""
