"""An index in a bucket: every file once, under its checksum; a manifest a version; CURRENT.

    uri/
      CURRENT               the name of the live version, replaced last
      versions/v3.json      the manifest of a version, as it was sealed; put if absent, after all its files
      files/<sha256>        a file of one version or of several: an update sends what is new
      .lease/               who is writing (see `rayvec.lease`)

Nothing is renamed and nothing but CURRENT is replaced, so that a reader finds a whole version whenever it looks. Nobody
searches here: `mirrors` copies a version to the machine that does. Knows objects and checksums. Knows no FAISS.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rayvec import storage, uris
from rayvec.data.embeddings import manifest_uri
from rayvec.errors import ConcurrentWriterError, UserError, VerificationError
from rayvec.faults import failpoint
from rayvec.indexing import versions
from rayvec.indexing.versions import CURRENT, MANIFEST, NAME, VERSIONS, number, parse_manifest
from rayvec.lease import Guard
from rayvec.storage import JsonObject

FILES = "files"
#: Files that are on their way at a time.
AT_ONCE = 8


def current(uri: str) -> str:
    """The name of the live version. Raises UserError when there is no index, VerificationError when it is damaged."""
    place = uris.join(uri, CURRENT)
    try:
        data = storage.read_bytes(place)
        if not data.endswith(b"\n"):  # of an object that grew between pyarrow's two requests, the end is missing
            data = storage.read_bytes(place)
    except FileNotFoundError:
        raise UserError(f"{uri} holds no index (no {CURRENT} there): build one with python -m jobs.index") from None
    name = data.strip().decode("utf-8", "replace")
    if not NAME.fullmatch(name) or not data.endswith(b"\n"):
        raise VerificationError(f"{place} names {name!r}, which is not a version")
    return name


def live_name(uri: str) -> str | None:
    """The same; None where there is no index yet."""
    return current(uri) if storage.exists(uris.join(uri, CURRENT)) else None


def list_versions(uri: str) -> list[str]:
    """Names of the versions that are whole, oldest first."""
    names = (name.removesuffix(".json") for name in storage.list_names(uris.join(uri, VERSIONS)))
    return sorted((name for name in names if NAME.fullmatch(name)), key=number)


def manifest_bytes(uri: str, name: str) -> bytes:
    """The manifest of a version, as it was sealed. Raises UserError when there is no such version."""
    try:
        return storage.read_bytes(_manifest(uri, name))
    except FileNotFoundError:
        refuse_embeddings(uri, name)
    raise UserError(f"{uri} has no version {name!r}; there are: {', '.join(list_versions(uri)) or 'none'}")


def refuse_embeddings(uri: str, name: str) -> None:
    """Raise UserError where the name is of embeddings, which have a CURRENT too."""
    if NAME.fullmatch(name) and storage.exists(manifest_uri(uri, number(name))):
        raise UserError(
            f"{uri} holds embeddings, not an index: give the place of an index, or build one of them with "
            "python -m jobs.index"
        )


def read_manifest(uri: str, name: str) -> JsonObject:
    """The same, read. Raises VerificationError, too, unless it is exactly as it was written."""
    return parse_manifest(manifest_bytes(uri, name), name, _manifest(uri, name))


def publish(uri: str, version: Path, guard: Guard, known: frozenset[str] = frozenset()) -> JsonObject:
    """Put a version of this machine there, whole, and make it the live one. Returns its manifest.

    guard: of the lease, asked before what cannot be undone. known: checksums of files that are not sent where they are
    there in their size; all others are sent, whatever is there.

    Raises ConcurrentWriterError when another version has that name, or the lease is lost.
    """
    data = (version / MANIFEST).read_bytes()
    manifest = parse_manifest(data, version.name, version / MANIFEST)
    there = storage.list_sizes(uris.join(uri, FILES))
    new = {
        sha256: version / name
        for name, facts in manifest["files"].items()
        for sha256 in [str(facts["sha256"])]
        if sha256 not in known or there.get(sha256) != int(facts["bytes"])
    }
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(storage.copy_tree, new.values(), [_file(uri, sha256) for sha256 in new]))
    failpoint("before_rename")
    guard.check()
    check_files(uri, manifest)  # a run that held the index while this one could not reach it may have removed some
    if not storage.put_if_absent(_manifest(uri, version.name), data) and manifest_bytes(uri, version.name) != data:
        raise ConcurrentWriterError(f"another process has made {version.name} of {uri} meanwhile; run this one again")
    failpoint("before_current")
    guard.check()
    _point_to(uri, version.name)
    failpoint("after_current")
    return manifest


def download(uri: str, files: Mapping[str, JsonObject], folder: Path) -> None:
    """Copy files of a version into a folder, each whole or not at all.

    files: facts by name, as a manifest has them. Raises VerificationError for one that is missing or damaged there.
    """
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in threads.map(lambda item: _download(uri, folder / item[0], item[1]), files.items()):
            pass


def _download(uri: str, path: Path, facts: JsonObject) -> None:
    sha256 = str(facts["sha256"])
    place, part = _file(uri, sha256), path.with_name(f".{path.name}.part")
    try:
        # What was damaged on the way is whole the second time.
        if not any(_arrives(place, part, sha256) for _ in range(2)):
            raise VerificationError(f"{place} ({path.name}) is damaged; restore it or build the index again")
        part.replace(path)
    except FileNotFoundError:
        raise VerificationError(f"{place} ({path.name}) is missing; restore it or build the index again") from None
    finally:
        part.unlink(missing_ok=True)


def _arrives(place: str, part: Path, sha256: str) -> bool:
    """Copy a file to this disk; whether it is what it should be."""
    storage.copy_tree(place, part)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    return storage.sha256_file(part) == sha256


def _point_to(uri: str, name: str) -> None:
    storage.write_bytes(uris.join(uri, CURRENT), f"{name}\n".encode())


def rollback(uri: str, guard: Guard, version: str | None = None) -> str:
    """See `versions.rollback`; for who holds the index. That files are there in their sizes is all that is verified."""
    live = current(uri)
    if version is None:
        version = versions.before(live, list_versions(uri), lambda: read_manifest(uri, live), uri)
    check_files(uri, read_manifest(uri, version))
    guard.check()
    _point_to(uri, version)
    return version


def check_files(uri: str, manifest: JsonObject) -> None:
    """Raise VerificationError, naming the file, unless every file of a version is there in its size."""
    there = storage.list_sizes(uris.join(uri, FILES))
    for name, facts in manifest["files"].items():
        found = there.get(str(facts["sha256"]))
        if found != int(facts["bytes"]):
            what = "is missing" if found is None else f"has {found} bytes where its manifest says {facts['bytes']}"
            raise VerificationError(f"{_file(uri, str(facts['sha256']))} ({name} of {manifest['version']}) {what}")


def remove(uri: str, names: Iterable[str], guard: Guard) -> list[str]:
    """Remove versions, and then the files that no version has any more; for who holds the index. Returns the names.

    A version goes with its manifest: what a kill leaves of it are files of no version, which the next call removes.
    """
    gone = list(names)
    for name in gone:
        guard.check()
        storage.delete(_manifest(uri, name))
    kept = {str(facts["sha256"]) for name in list_versions(uri) for facts in read_manifest(uri, name)["files"].values()}
    for sha256 in storage.list_names(uris.join(uri, FILES)):
        if sha256 not in kept:
            guard.check()
            storage.delete(_file(uri, sha256))
    return gone


def _manifest(uri: str, name: str) -> str:
    return uris.join(uri, VERSIONS, f"{name}.json")


def _file(uri: str, sha256: str) -> str:
    return uris.join(uri, FILES, sha256)
