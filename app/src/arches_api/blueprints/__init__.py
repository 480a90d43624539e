"""Routes: HTTP in, HTTP out. SQL lives in models, rules in lib."""
