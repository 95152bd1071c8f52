"""Places of files and folders: local paths, or anything `pyarrow.fs.FileSystem.from_uri` or fsspec opens.

Knows their text. Opens nothing.
"""

from __future__ import annotations

from pathlib import Path


def is_local(uri: str | Path) -> bool:
    """Whether the URI is a path of this machine's file system."""
    return "://" not in str(uri) or str(uri).startswith("file://")


def local_path(uri: str | Path) -> Path:
    """The path of a local URI."""
    return Path(str(uri).removeprefix("file://")).expanduser()


def join(uri: str | Path, *parts: str) -> str:
    """Join parts to a URI with single slashes."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(uri: str | Path) -> str:
    """The last part of a URI."""
    return str(uri).rstrip("/").rpartition("/")[2]


def absolute(uri: str | Path) -> str:
    """The same place, whatever folder a worker runs in: local paths become absolute, other URIs stay."""
    return str(local_path(uri).absolute()) if is_local(uri) else str(uri)


def in_ascii(uri: str | Path) -> str:
    r"""A place as it can be told where there are no other letters: Ray's metrics end a run that gives them some.

    >>> in_ascii("runs/März")
    'runs/M\\xe4rz'
    """
    return str(uri).encode("ascii", "backslashreplace").decode()
