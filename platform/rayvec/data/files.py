"""Files: what a path, folder, glob pattern or URI stands for. Knows names, sizes and times; opens nothing.

A folder is walked recursively; names that begin with `.` or `_` (temporary files, markers) are left out of a walk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from rayvec import storage, uris
from rayvec.data.units import Input
from rayvec.errors import MismatchError, UserError

#: What the end of a name says about its content, once a compression's own ending is taken off.
EXTENSIONS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
#: Endings of what is packed in ways that are not read.
_PACKED = {".bz2", ".xz", ".lzma", ".lz4", ".br", ".snappy", ".zip", ".7z", ".rar", ".tar", ".tgz"}
_THREADS = 16
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Listing:
    """Files in the order in which they are read, and the folder that their names are told relative to."""

    base: str
    files: tuple[Input, ...]

    def name(self, uri: str) -> str:
        """The name of a file relative to the base; part of the ids of records that bring none."""
        return uri.removeprefix(self.base).lstrip("/")

    def digest(self) -> str:
        """The first 16 hex digits of a SHA-256 of the files' names, sizes and times: another where one has changed."""
        facts = [[self.name(file.uri), file.bytes, file.modified] for file in self.files]
        return storage.sha256_bytes(json.dumps(facts).encode())[:16]


def list_files(path: str | Sequence[str], kind: str | None = None) -> Listing:
    """The files of a path, sorted by name, or of several, one path after the other. Raises UserError for one of none.

    kind: of a folder take the files of this kind by their extension, or where there are none those of an unknown one;
    by default all of a known kind.
    """
    if not isinstance(path, str) and path:
        return _joined([list_files(one, kind) for one in path])
    if not path or not isinstance(path, str):
        raise UserError("source.path is not set; give a file, a folder or a glob pattern with --set source.path=…")
    uri = uris.absolute(path).rstrip("/") or "/"
    _, inner = storage.filesystem(uri)
    prefix = uri[: len(uri) - len(inner)] if uri.endswith(inner) else ""
    info = storage.info(uri)
    if info.type == pafs.FileType.File:
        return Listing(_parent(uri), (_input(info, prefix),))
    if info.type == pafs.FileType.Directory:
        walked = _walk(prefix, inner, recursive=True)
        found = [file for file in walked if (kind_of(file.path) == kind if kind else kind_of(file.path))]
        if kind and not found:
            found = [file for file in walked if kind_of(file.path) is None]
        packed = next((file.path for file in walked if packing_of(file.path)), None)
        if packed is not None and not found:
            raise UserError(_packed(prefix + packed, packing_of(packed) or ""))
        other = "" if kind else "; source.kind=text reads others, such as code, mail, HTML and logs, as they stand"
        otherwise = f"holds no file that rayvec reads ({', '.join(EXTENSIONS)}, plain, .gz or .zst{other})"
        return _listing(path, inner, prefix, found, otherwise)
    if not _MAGIC.search(inner):
        raise UserError(f"{path} does not exist; check source.path")
    base, pattern = _split_pattern(inner)
    expression = re.compile(_translate(pattern))
    walked = _walk(prefix, base, recursive="/" in pattern)
    found = [file for file in walked if expression.fullmatch(file.path.removeprefix(base).lstrip("/"))]
    return _listing(path, base, prefix, found, "matches no file")


def _joined(listings: Sequence[Listing]) -> Listing:
    """All files, each once, named relative to the folder that holds them all."""
    parts = zip(*(listing.base.split("/") for listing in listings), strict=False)
    base = "/".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, parts))
    files = dict.fromkeys(file for listing in listings for file in listing.files)
    return Listing(base, tuple(files))


def kind_of(name: str) -> str | None:
    """The kind that a name's extension says, or None.

    >>> kind_of("a/corpus.jsonl.gz"), kind_of("notes.docx")
    ('jsonl', None)
    """
    path = PurePosixPath(name)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return EXTENSIONS.get(path.suffix.lower())


def compression_of(name: str) -> str | None:
    """The name of the codec that a file is compressed with, or None."""
    return COMPRESSIONS.get(PurePosixPath(name).suffix.lower())


def packing_of(name: str) -> str | None:
    """The ending of a file that is packed in a way that is not read, or None.

    >>> packing_of("a/corpus.jsonl.BZ2"), packing_of("corpus.jsonl.gz")
    ('.bz2', None)
    """
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in _PACKED else None


def check_packing(files: Iterable[Input]) -> None:
    """Raise UserError for a file that is packed in a way that is not read."""
    for file in files:
        packing = packing_of(file.uri)
        if packing is not None:
            raise UserError(_packed(file.uri, packing))


def _packed(uri: str, packing: str) -> str:
    return f"{uri}: {packing} is not read; unpack it, or pack it anew as .gz or .zst"


def check_unchanged(uris: tuple[str, ...], bytes_: int, modified: int | None) -> None:
    """Raise MismatchError unless the files have the size and time they had when their unit was planned."""
    with ThreadPoolExecutor(min(len(uris), _THREADS)) as pool:
        found = list(pool.map(stat, uris))
    if sum(file.bytes for file in found) != bytes_ or newest(found) != modified:
        raise MismatchError(
            f"{uris[0]}{' or a file planned with it' if len(uris) > 1 else ''} has changed since the run was planned; "
            "put the old file back, or start again with another output"
        )


def stat(uri: str) -> Input:
    """Size and time of a file; size -1 when it is not there."""
    info = storage.info(uri)
    return Input(uri, info.size if info.type == pafs.FileType.File else -1, info.mtime_ns)


def newest(files: list[Input]) -> int | None:
    """The latest time of change, where the storage tells it."""
    return max((file.modified for file in files if file.modified is not None), default=None)


def _walk(prefix: str, base: str, *, recursive: bool) -> list[pafs.FileInfo]:
    infos = storage.list_infos(prefix + base, recursive=recursive)
    return [info for info in infos if info.type == pafs.FileType.File and not _is_hidden(info.path, base)]


def _is_hidden(path: str, base: str) -> bool:
    return any(part[0] in "._" for part in path.removeprefix(base).split("/") if part)


def _listing(path: str, base: str, prefix: str, found: list[pafs.FileInfo], otherwise: str) -> Listing:
    if not found:
        raise UserError(f"{path} {otherwise}; check source.path")
    return Listing(prefix + base.rstrip("/"), tuple(_input(i, prefix) for i in sorted(found, key=lambda i: i.path)))


def _input(info: pafs.FileInfo, prefix: str) -> Input:
    return Input(prefix + info.path, info.size, info.mtime_ns)


def _parent(uri: str) -> str:
    return uri.rsplit("/", 1)[0]


def _split_pattern(inner: str) -> tuple[str, str]:
    """The folder before the first part with a wild card, and the rest."""
    parts = inner.split("/")
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def _translate(pattern: str) -> str:
    """A glob pattern as a regular expression; `**/` stands for any number of folders, `*` stays inside one."""
    result = ""
    for piece in re.findall(r"\*\*/|\*+|\?|\[[^\]]+\]|.", pattern):
        if piece == "**/":
            result += "(?:.*/)?"
        elif piece[0] == "*":
            result += ".*" if piece == "**" else "[^/]*"
        elif piece == "?":
            result += "[^/]"
        elif piece[0] == "[" and len(piece) > 1:
            result += piece.replace("[!", "[^")
        else:
            result += re.escape(piece)
    return result
