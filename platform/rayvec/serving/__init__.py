"""Serving: HTTP in, documents out, on Ray Serve. The only package that imports FastAPI.

`build_app(ServeConfig(index=...))` gives the application; everything below it is a plain class that runs without Ray.
"""
