"""Copies on this machine of an index in a bucket: what is searched, and what jobs work on.

A copy is an index folder as any other (see `versions`), in the user's cache: `fetch` brings a version, or the files of
it that a process opens, and links what it shares with those that are there; `working` gives a job the live version, and
`building` one an empty place; what the job makes live there goes to the bucket. Knows folders, objects, locks. Knows no
FAISS.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rayvec import storage, uris
from rayvec.errors import UserError, VerificationError
from rayvec.failures import storage_errors
from rayvec.indexing import bucket, versions
from rayvec.indexing.part import WHOLE, Part
from rayvec.lease import LEASE_S, Guard, sole_writer
from rayvec.storage import JsonObject

_LOG = logging.getLogger(__name__)
#: Versions that stay on a machine beside those that a process has open: the last that were asked for.
KEPT = 2
#: What a job writes beside the versions, for people.
REPORTS = ("config.yaml", "report.json", "dimensions.png")
#: Names a version that was built here and is not in the bucket yet.
UNSENT = "UNSENT"
#: Is there when a job found a file of the copy damaged.
SUSPECT = "SUSPECT"


@dataclass(frozen=True)
class Building:
    """Where an index is built: the folder; the manifest of what is there already and needs no building, if it is; and
    what a new manifest must say beside."""

    folder: Path
    finished: JsonObject | None
    facts: JsonObject


def folder_of(uri: str) -> Path:
    """Where the copy of an index lies on this machine; XDG_CACHE_HOME, or ~/.cache, says on which disk."""
    return storage.cache_folder("indices", uri)


def fetch(uri: str, name: str, part: Part = WHOLE, *, mend: bool = False) -> Path:
    """The folder of a version on this machine, with the files of a part of it, which are copied unless they are there.

    mend: read those that are there, and copy what is damaged again. Where something is copied, other processes that
    want something wait. Raises UserError when there is no such version, VerificationError, StorageError.
    """
    data = bucket.manifest_bytes(uri, name)
    manifest = part.cut(versions.parse_manifest(data, name, f"{name} of {uri}"))
    copy = folder_of(uri)
    folder = copy / versions.VERSIONS / name
    if mend or not _is_whole(folder, manifest, data):
        with _alone(copy), storage_errors(folder):
            _make_way(copy, folder, data)
            _remove_old(copy, name)  # first, for what they take on the disk
            _record(copy, name)
            folder.mkdir(parents=True, exist_ok=True)
            _bring(uri, copy, folder, manifest, mend=mend)
            if not (folder / versions.MANIFEST).exists():
                storage.write_bytes(folder / versions.MANIFEST, data)
    # The file stays, since who has the version open has locked it; its time says when it was asked for.
    with contextlib.suppress(FileNotFoundError):  # gone meanwhile: who opens it is told
        os.utime(folder / versions.MANIFEST)
    return folder


def _is_whole(folder: Path, manifest: JsonObject, data: bytes) -> bool:
    return _content(folder) == data and all(
        _is_there(folder / name, facts) for name, facts in manifest["files"].items()
    )


def _content(folder: Path) -> bytes | None:
    try:
        return (folder / versions.MANIFEST).read_bytes()
    except FileNotFoundError:
        return None


def _make_way(copy: Path, coming: Path, data: bytes) -> None:
    """Remove another version of the same name, which was never in the bucket, or is not any more."""
    if _content(coming) not in (None, data) and not versions.remove_unless_held(copy, coming.name):
        raise UserError(
            f"another {coming.name} was at the same place before, and is open on this machine; end the service that "
            "has it, and start it again"
        )


def _remove_old(copy: Path, newest: str) -> None:
    """Leave the newest, those asked for last, those that are open, and the one that a job works on."""
    others = [copy / versions.VERSIONS / name for name in versions.list_versions(copy) if name != newest]
    for folder in sorted(others, key=_asked_for, reverse=True)[KEPT - 1 :]:
        if folder.name not in versions.live_name(copy):
            versions.remove_unless_held(copy, folder.name)
    versions.empty_trash(copy)


def _asked_for(folder: Path) -> float:
    try:
        return (folder / versions.MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _record(copy: Path, *names: str) -> None:
    """Set down names that are given, so that they are not given again."""
    known = versions.had_lived(copy) if (copy / versions.HISTORY).exists() else []
    versions.record(copy, *(name for name in names if name not in known))


def _bring(uri: str, copy: Path, folder: Path, manifest: JsonObject, *, mend: bool) -> None:
    """Link what another version here has, and copy the rest."""
    here = {} if mend else _files(copy, besides=folder.name)
    wanted = {}
    for name, facts in manifest["files"].items():
        path, sha256 = folder / name, str(facts["sha256"])
        if _is_there(path, facts) and (not mend or storage.sha256_file(path) == sha256):
            continue
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if sha256 in here and _is_there(here[sha256], facts):
            with contextlib.suppress(OSError):  # no links on this file system, or too many of them
                path.hardlink_to(here[sha256])
                continue
        wanted[name] = facts
    if wanted:
        size = sum(int(facts["bytes"]) for facts in wanted.values())
        _LOG.info("copying %d files (%d bytes) of %s, %s, to %s", len(wanted), size, uri, folder.name, folder)
    bucket.download(uri, wanted, folder)


def _is_there(path: Path, facts: JsonObject) -> bool:
    return path.is_file() and path.stat().st_size == int(facts["bytes"])


def _files(copy: Path, besides: str) -> dict[str, Path]:
    """The files of the versions that are here, by their checksums."""
    found: dict[str, Path] = {}
    for name in versions.list_versions(copy):
        folder = copy / versions.VERSIONS / name
        if name != besides:
            with contextlib.suppress(VerificationError):
                files = versions.read_manifest(folder)["files"]
                found |= {str(facts["sha256"]): folder / path for path, facts in files.items()}
    return found


@contextlib.contextmanager
def working(uri: str, *, lease_s: float = LEASE_S) -> Iterator[Path]:
    """The folder to work in on an index in a bucket, alone: its live version lies there, and is the live one.

    What is live in the folder when the block ends well becomes live in the bucket; otherwise it is forgotten.
    Raises ConcurrentWriterError when another run holds the index, UserError where there is none.
    """
    with sole_writer(uri, lease_s) as guard:
        copy, live = folder_of(uri), bucket.current(uri)
        _forget(copy)
        manifest = versions.read_manifest(fetch(uri, live, mend=(copy / SUSPECT).exists()))
        (copy / SUSPECT).unlink(missing_ok=True)
        _begin(uri, copy, live, live)
        try:
            yield copy
        except VerificationError as error:
            (copy / SUSPECT).touch()
            raise VerificationError(f"{error} (this is a copy, which the next run makes good)") from None
        _publish(uri, live, copy, guard, _checksums(manifest))


@contextlib.contextmanager
def building(uri: str, is_wanted: Callable[[JsonObject], bool], *, lease_s: float = LEASE_S) -> Iterator[Building]:
    """The folder to build an index in that goes to a bucket, alone. Nothing of what is live there is copied.

    is_wanted: whether a manifest is of what would be built. Such a version is finished if it is live, or if it was
    built here and could not be sent: then it is, when the block ends. Otherwise what is built in the block becomes live
    in the bucket, whatever was there.

    Raises ConcurrentWriterError when another run holds the index, UserError where something else is.
    """
    with sole_writer(uri, lease_s) as guard:
        copy = folder_of(uri)
        live, manifest = _live(uri)
        if manifest is not None and is_wanted(manifest):
            yield Building(copy, manifest, {})
            return
        unsent = _unsent(copy, live, is_wanted)
        if unsent is None:
            _forget(copy)
        _begin(uri, copy, None if unsent is None else unsent["version"], live)
        yield Building(copy, unsent, {"parent": live})
        known = frozenset() if unsent is None else _checksums(unsent)
        (copy / UNSENT).write_text("".join(versions.live_name(copy)))
        _publish(uri, live, copy, guard, known)
        (copy / UNSENT).unlink()


def _live(uri: str) -> tuple[str | None, JsonObject | None]:
    """What is live in the bucket, and its manifest, if its files are there; None for what is not there or damaged."""
    try:
        name = bucket.live_name(uri)
    except VerificationError:
        return None, None
    if name is None:
        return None, None
    try:
        manifest = bucket.read_manifest(uri, name)
        bucket.check_files(uri, manifest)
    except VerificationError:
        return name, None
    except UserError:
        bucket.refuse_embeddings(uri, name)
        return name, None
    return name, manifest


def _unsent(copy: Path, live: str | None, is_wanted: Callable[[JsonObject], bool]) -> JsonObject | None:
    """The version that was built here after what is live in the bucket, and not sent; None if another is wanted."""
    try:
        manifest = versions.read_manifest(copy / versions.VERSIONS / (copy / UNSENT).read_text())
    except (FileNotFoundError, NotADirectoryError, VerificationError):
        return None
    return manifest if manifest["parent"] == live and manifest["version"] != live and is_wanted(manifest) else None


def _forget(copy: Path) -> None:
    """Leave nothing of a job that did not come to its end."""
    for name in (*REPORTS, UNSENT):
        (copy / name).unlink(missing_ok=True)


def _begin(uri: str, copy: Path, here: str | None, live: str | None) -> None:
    """Make `here` the live version of the copy, or leave it without one; its next gets a number of its own."""
    given = bucket.list_versions(uri)
    with _alone(copy):
        _record(copy, *given[-1:], *([live] if live else []))
        if here is None:
            (copy / versions.CURRENT).unlink(missing_ok=True)
        else:
            versions.point_to(copy, here)


def _checksums(manifest: JsonObject) -> frozenset[str]:
    return frozenset(str(facts["sha256"]) for facts in manifest["files"].values())


def _publish(uri: str, live: str | None, copy: Path, guard: Guard, known: frozenset[str]) -> None:
    made = versions.live_name(copy)
    if made and made != [live]:
        bucket.publish(uri, versions.version_folder(copy), guard, known)
        with _alone(copy):
            _remove_old(copy, *made)
    for name in REPORTS:
        if (copy / name).is_file():
            storage.copy_tree(copy / name, uris.join(uri, name))
            (copy / name).unlink()


@contextlib.contextmanager
def _alone(copy: Path) -> Iterator[None]:
    """One process of this machine at a time changes the copy; others wait."""
    with storage_errors(copy):
        (copy / versions.VERSIONS).mkdir(parents=True, exist_ok=True)
        opened = (copy / ".copying").open("w")
    with opened as lock:
        with storage_errors(copy):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
