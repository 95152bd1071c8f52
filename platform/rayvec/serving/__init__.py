"""Serving: HTTP in, documents out, on Ray Serve. The only package that imports FastAPI."""
