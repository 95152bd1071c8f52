"""The files of the search page: at which path each is sent, and as what. Knows no route and no framework."""

from __future__ import annotations

from importlib import resources

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_NAMES = ("index.html", "page.css", "page.js", "dom.js", "hits.js", "filters.js", "map.js")

#: File by path. They hold nothing secret: where keys are set, the page asks for one.
PAGE = {"/" if name == "index.html" else f"/{name}": name for name in _NAMES}


def content(name: str) -> tuple[bytes, str]:
    """What a file holds, and its media type."""
    whole = resources.files("rayvec.serving").joinpath("page", name).read_bytes()
    return whole, f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8"
