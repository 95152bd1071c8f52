"""Where an index lies: a folder, or a bucket whose versions are copied to the machine that reads them.

What readers ask, of either. Knows URIs. Knows no FAISS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rayvec import uris
from rayvec.errors import VerificationError
from rayvec.indexing import bucket, mirrors, tasks, versions
from rayvec.indexing.mirrors import Building
from rayvec.indexing.part import WHOLE, Part
from rayvec.lease import LEASE_S, sole_writer
from rayvec.storage import JsonObject


def current(uri: str | Path) -> str:
    """The name of the live version.

    Raises UserError when there is no index, or something else, VerificationError when it is damaged.
    """
    return versions.current(uri) if uris.is_local(uri) else bucket.current(str(uri))


def list_versions(uri: str | Path) -> list[str]:
    """Names of the finished versions, oldest first."""
    return versions.list_versions(uri) if uris.is_local(uri) else bucket.list_versions(str(uri))


def read_manifest(uri: str | Path, version: str | None = None) -> JsonObject:
    """The manifest of a version, of the live one by default; nothing else is read.

    Raises UserError when there is no such version, VerificationError when its manifest is damaged.
    """
    if uris.is_local(uri):
        return versions.read_manifest(versions.version_folder(uri, version))
    return bucket.read_manifest(str(uri), version or bucket.current(str(uri)))


def sizes(uri: str | Path, version: str) -> list[tuple[Any, int]]:
    """Of each file of a version what it is known by, which those that share it have too, and its bytes.

    Of one in a bucket whose manifest is damaged nothing is known.
    """
    if uris.is_local(uri):
        stats = [path.stat() for path in versions.version_folder(uri, version).rglob("*") if path.is_file()]
        return [((stat.st_dev, stat.st_ino), stat.st_size) for stat in stats]
    try:
        files = bucket.read_manifest(str(uri), version)["files"].values()
    except VerificationError:
        return []
    return list({str(facts["sha256"]): int(facts["bytes"]) for facts in files}.items())


def version_folder(uri: str | Path, version: str | None = None, part: Part = WHOLE) -> Path:
    """A folder of this machine with a version, the live one by default: with the files of a part of it, at least.

    Raises UserError when there is no such version, VerificationError for a file that is missing or damaged in a bucket.
    """
    if uris.is_local(uri):
        return versions.version_folder(uri, version)
    return mirrors.fetch(str(uri), version or bucket.current(str(uri)), part)


def verify(
    uri: str | Path, folder: Path, manifest: JsonObject, part: Part, known: frozenset[versions.Seen]
) -> frozenset[versions.Seen]:
    """As `versions.verify`, of the files of a part; what is damaged in a copy of a bucket's is copied once more."""
    own = part.cut(manifest)
    try:
        return versions.verify(folder, own, known)
    except VerificationError:
        if uris.is_local(uri):
            raise
        mirrors.fetch(str(uri), folder.name, part, mend=True)
        return versions.verify(folder, own)


def where_it_is_read(uri: str | Path) -> contextlib.AbstractContextManager[None]:
    """For the length of the block, Ray tasks that are given paths of `version_folder` run where those are."""
    return contextlib.nullcontext() if uris.is_local(uri) else tasks.on_this_node()


@contextlib.contextmanager
def working(uri: str, *, lease_s: float = LEASE_S) -> Iterator[Path]:
    """The folder in which a job changes an index: the index itself, or a copy on this machine of one in a bucket.

    What the job makes live there is made live in the bucket when the block ends well (see `mirrors.working`); Ray tasks
    then run on this machine, which has the copy.
    """
    if uris.is_local(uri):
        yield versions.local_folder(uri)
        return
    with mirrors.working(uri, lease_s=lease_s) as folder, tasks.on_this_node():
        yield folder


@contextlib.contextmanager
def building(uri: str, is_wanted: Callable[[JsonObject], bool], *, lease_s: float = LEASE_S) -> Iterator[Building]:
    """The folder in which a job builds an index anew, and what is there already (see `mirrors.building`).

    is_wanted: whether a manifest is of what would be built. In a folder, such a version is verified.
    """
    if uris.is_local(uri):
        folder = versions.local_folder(uri)
        yield Building(folder, _finished(folder, is_wanted), {})
        return
    with mirrors.building(uri, is_wanted, lease_s=lease_s) as place, tasks.on_this_node():
        yield place


def _finished(folder: Path, is_wanted: Callable[[JsonObject], bool]) -> JsonObject | None:
    """The manifest of the live version, if it is wanted and whole. Raises UserError where something else is."""
    if not (folder / versions.CURRENT).exists():
        return None
    try:
        live = versions.version_folder(folder)
        manifest = versions.read_manifest(live)
        if not is_wanted(manifest):
            return None
        versions.verify(live, manifest)
    except VerificationError:
        return None
    return manifest


def rollback(uri: str | Path, version: str | None = None) -> str:
    """Make another version the live one: the one given, or the one that the live was made after.

    It is verified first; of one in a bucket, that its files are there in their sizes. Raises UserError when there is no
    such version, VerificationError when it is damaged: the live one then stays.
    """
    if uris.is_local(uri):
        return versions.rollback(uri, version)
    with sole_writer(str(uri)) as guard:
        return bucket.rollback(str(uri), guard, version)


def prune(uri: str | Path, keep: int = 2) -> list[str]:
    """Remove all but the newest `keep` versions and the live one; in a folder, those that a process has open stay too.

    Returns the names removed.
    """
    if uris.is_local(uri):
        return versions.prune(uri, keep)
    versions.check_kept(keep)
    with sole_writer(str(uri)) as guard:
        live, there = bucket.current(str(uri)), bucket.list_versions(str(uri))
        return bucket.remove(str(uri), [name for name in there[:-keep] if name != live], guard)
