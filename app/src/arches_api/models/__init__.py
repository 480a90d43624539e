"""SQL in typed functions. Each takes a connection inside a transaction; none knows about HTTP."""
