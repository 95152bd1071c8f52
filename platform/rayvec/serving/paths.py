"""A request's path as the interface's routes have it, whatever prefix Serve gives it to. Knows ASGI alone."""

from __future__ import annotations

from starlette.types import Scope


def path_of(scope: Scope) -> str:
    """The path below the prefix of the application (`route_prefix` in a Serve file), which ASGI leaves in the path.

    >>> path_of({"path": "/rag/v1/search", "root_path": "/rag"}), path_of({"path": "/ragtime", "root_path": "/rag"})
    ('/v1/search', '/ragtime')
    >>> path_of({"path": "/rag", "root_path": "/rag"}), path_of({"path": "/v1/search"})
    ('/', '/v1/search')
    """
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "").rstrip("/")
    below = path.removeprefix(prefix)
    if not prefix or below == path:
        return path
    return below if below.startswith("/") else path if below else "/"
