"""Copies on this machine of an index in a bucket: what is searched, and what jobs work on.

A copy is an index folder as any other (see `versions`), in the user's cache: `fetch` brings a version, or the files of
it that a process opens, and links what it shares with those that are there; `working` gives a job the live version, and
what the job makes live goes to the bucket. Knows folders, objects, locks. Knows no FAISS.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rayvec import storage, uris
from rayvec.errors import UserError, VerificationError
from rayvec.failures import storage_errors
from rayvec.indexing import bucket, versions
from rayvec.indexing.part import WHOLE, Part
from rayvec.lease import LEASE_S, sole_writer
from rayvec.storage import JsonObject

_LOG = logging.getLogger(__name__)
#: Versions that stay on a machine beside those that a process has open: the last that were asked for.
KEPT = 2
#: What a job writes beside the versions, for people.
REPORTS = ("config.yaml", "report.json", "dimensions.png")


def folder_of(uri: str) -> Path:
    """Where the copy of an index lies on this machine; XDG_CACHE_HOME, or ~/.cache, says on which disk."""
    return storage.cache_folder("indices", uri)


def fetch(uri: str, name: str, part: Part = WHOLE, *, mend: bool = False) -> Path:
    """The folder of a version on this machine, with the files of a part of it, which are copied unless they are there.

    mend: read those that are there, and copy what is damaged again. Other processes that want it wait. Raises UserError
    when there is no such version, VerificationError, StorageError.
    """
    data = bucket.manifest_bytes(uri, name)
    manifest = versions.parse_manifest(data, name, f"{name} of {uri}")
    copy = folder_of(uri)
    folder = copy / versions.VERSIONS / name
    with _alone(copy):
        if _is_another(folder, data):  # of the same name, made here, and never published
            shutil.rmtree(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _record(copy, name)
            _bring(uri, copy, folder, part.cut(manifest), mend=mend)
            if not (folder / versions.MANIFEST).exists():
                storage.write_bytes(folder / versions.MANIFEST, data)
            # The file stays, since who has the version open has locked it; its time says when it was asked for.
            os.utime(folder / versions.MANIFEST)
        _remove_old(copy)
    return folder


def _record(copy: Path, *names: str) -> None:
    known = versions.had_lived(copy) if (copy / versions.HISTORY).exists() else []
    versions.record(copy, *(name for name in names if name not in known))


def _is_another(folder: Path, data: bytes) -> bool:
    try:
        return (folder / versions.MANIFEST).read_bytes() != data
    except FileNotFoundError:
        return False


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


def _remove_old(copy: Path) -> None:
    """Leave the versions asked for last, those that are open, and the one that a job works on."""
    there = [copy / versions.VERSIONS / one for one in versions.list_versions(copy)]
    by_age = sorted(there, key=_asked_for, reverse=True)
    kept = {*versions.live_name(copy), *(folder.name for folder in by_age[:KEPT])}
    for folder in by_age:
        if folder.name not in kept:
            versions.remove_unless_held(copy, folder.name)
    versions.empty_trash(copy)


def _asked_for(folder: Path) -> float:
    try:
        return (folder / versions.MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextlib.contextmanager
def working(uri: str, *, lease_s: float = LEASE_S, resumes: bool = False) -> Iterator[Path]:
    """The folder to work in on an index in a bucket, alone: its live version lies there, if it has one.

    What is live in the folder when the block ends well becomes live in the bucket. Where that fails, the version stays
    in the folder; resumes: it is taken for the live one, so that a job that would make the very same one sends it. Else
    it is forgotten.

    Raises ConcurrentWriterError when another run holds the index.
    """
    with sole_writer(uri, lease_s) as guard:
        live, copy = bucket.live_name(uri), folder_of(uri)
        if not (resumes and _is_next(copy, live)):
            _start_from(uri, live, copy)
        given = bucket.list_versions(uri)
        with _alone(copy):
            _record(copy, *given[-1:])  # numbers are not given twice
        yield copy
        guard.check()
        _publish(uri, live, copy)


def _is_next(copy: Path, live: str | None) -> bool:
    """Whether the live version of the copy was made here after what is live in the bucket, and was not sent."""
    try:
        made = versions.read_manifest(versions.version_folder(copy))
    except (UserError, VerificationError):
        return False
    return made["version"] != live and made["parent"] == live


def _start_from(uri: str, live: str | None, copy: Path) -> None:
    if live is None:
        (copy / versions.CURRENT).unlink(missing_ok=True)
        return
    fetch(uri, live)
    with _alone(copy):
        versions.point_to(copy, live)


def _publish(uri: str, live: str | None, copy: Path) -> None:
    made = versions.live_name(copy)
    if made and made != [live]:
        bucket.publish(uri, versions.version_folder(copy))
    for name in REPORTS:
        if (copy / name).is_file():
            storage.copy_tree(copy / name, uris.join(uri, name))
            (copy / name).unlink()
    with _alone(copy):
        _remove_old(copy)


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
