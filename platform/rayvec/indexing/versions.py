"""Versions of an index: written aside, renamed when whole, and only then named by CURRENT. List, roll back, prune.

    output/
      CURRENT               the name of the live version, replaced atomically and last
      versions/v1/          a finished version: immutable; `manifest.json` holds the size and SHA-256 of every other
                            file, and a seal of its own
      versions/.v2.….tmp    a build at work, or one that was killed: the next build removes it

Knows folders, checksums and names. Knows no FAISS, no vectors. A local (or mounted) folder only: object stores cannot
rename a folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayvec import storage
from rayvec.errors import ConcurrentWriterError, UserError, VerificationError
from rayvec.storage import JsonObject

FORMAT = "rayvec.index/1"
CURRENT = "CURRENT"
VERSIONS = "versions"
MANIFEST = "manifest.json"
SEAL = "sha256"
NAME = re.compile(r"v[1-9][0-9]*")


def local_folder(uri: str | Path) -> Path:
    """The folder of an index. Raises UserError for an object store, which cannot rename folders."""
    if not storage.is_local(uri):
        raise UserError(
            f"an index lies in a local or mounted folder, and {uri} is an object store: copy it, or mount it"
        )
    return storage.local_path(uri).absolute()


def list_versions(output: str | Path) -> list[str]:
    """Names of the finished versions, oldest first."""
    names = storage.list_names(local_folder(output) / VERSIONS)
    return sorted((name for name in names if NAME.fullmatch(name)), key=_number)


def current(output: str | Path) -> str:
    """The name of the live version. Raises UserError when there is no index, VerificationError when it is damaged."""
    folder = local_folder(output)
    try:
        name = (folder / CURRENT).read_bytes().strip().decode("utf-8", "replace")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no index (no {CURRENT} file): build one with python -m jobs.index") from None
    if not NAME.fullmatch(name) or not (folder / VERSIONS / name).is_dir():
        known = ", ".join(list_versions(folder)) or "none"
        raise VerificationError(f"{folder / CURRENT} names {name!r}, which is not a version here (there are: {known})")
    return name


def version_folder(output: str | Path, version: str | None = None) -> Path:
    """The folder of a version, of the live one by default. Raises UserError when it is not there."""
    folder = local_folder(output)
    name = current(folder) if version is None else version
    if not NAME.fullmatch(name) or not (folder / VERSIONS / name).is_dir():
        known = ", ".join(list_versions(folder)) or "none"
        raise UserError(f"{folder} has no version {name!r}; there are: {known}")
    return folder / VERSIONS / name


def read_manifest(folder: Path) -> JsonObject:
    """The manifest of a version. Raises VerificationError unless it is exactly as it was written, in its own place."""
    path = folder / MANIFEST
    try:
        manifest = storage.read_json(path)
    except FileNotFoundError:
        raise VerificationError(f"{path} is missing; restore it or build the index again") from None
    if manifest.get("format") != FORMAT:
        raise VerificationError(f"{path} is not a manifest of {FORMAT}; build the index again with this rayvec")
    # Compared as bytes: a flipped bit may leave equal JSON behind (1e-05 and 1E-05), and is damage all the same.
    body = {key: value for key, value in manifest.items() if key != SEAL}
    if storage.to_json(_sealed(body)) != storage.read_bytes(path):
        raise VerificationError(f"{path} does not match its own seal; it was damaged or changed: build the index again")
    if manifest["version"] != folder.name:
        raise VerificationError(f"{path} is of version {manifest['version']}, not {folder.name}; files were swapped")
    return manifest


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise VerificationError, naming the file, unless every file has the size and checksum that the manifest gives."""
    for name, facts in manifest["files"].items():
        storage.check_file(folder / name, bytes_=int(facts["bytes"]), sha256=str(facts["sha256"]))


def rollback(output: str | Path, version: str | None = None) -> str:
    """Make another version the live one: the one given, or the one before the live. It is verified first."""
    folder = local_folder(output)
    with writing(folder):
        if version is None:
            older = [name for name in list_versions(folder) if _number(name) < _number(current(folder))]
            if not older:
                raise UserError(f"{folder} has no version before {current(folder)} to go back to")
            version = older[-1]
        chosen = version_folder(folder, version)
        verify(chosen, read_manifest(chosen))
        _point_to(folder, version)
    return version


def prune(output: str | Path, keep: int = 2) -> list[str]:
    """Remove all but the newest `keep` versions and the live one. Returns the names removed."""
    if keep < 1:
        raise UserError(f"keep = {keep}: keep at least 1 version")
    folder = local_folder(output)
    with writing(folder):
        live = current(folder)
        gone = [name for name in list_versions(folder)[:-keep] if name != live]
        for name in gone:
            # Renamed first, so that a reader finds the whole version or none of it.
            trash = folder / VERSIONS / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
            (folder / VERSIONS / name).rename(trash)
            shutil.rmtree(trash)
    return gone


@contextlib.contextmanager
def writing(output: str | Path) -> Iterator[Path]:
    """Hold the output for writing, and remove what killed builds left there. The system frees it however we end.

    Raises ConcurrentWriterError when another process holds it.
    """
    folder = local_folder(output)
    storage.make_folder(folder / VERSIONS)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConcurrentWriterError(
                f"another process is writing {folder}; wait for it, or choose another"
            ) from None
        for leftover in (folder / VERSIONS).glob(".v*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield folder


@dataclass(frozen=True)
class Draft:
    """A version being written: fill `folder`, then `commit`."""

    output: Path
    name: str
    folder: Path

    def commit(self, facts: Mapping[str, Any]) -> JsonObject:
        """Seal the manifest over every file in the folder, rename the folder, and make it the live version."""
        files = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        for path in files.values():
            _sync(path)
        sums = {
            name: {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)} for name, path in files.items()
        }
        manifest = _sealed({"format": FORMAT, "version": self.name, **facts, "files": sums})
        storage.write_json(self.folder / MANIFEST, manifest)
        self.folder.rename(self.output / VERSIONS / self.name)
        storage.sync_folder(self.output / VERSIONS)
        _point_to(self.output, self.name)
        return manifest


@contextlib.contextmanager
def new_version(output: str | Path) -> Iterator[Draft]:
    """A draft of the next version; what is not committed when the block ends is removed. Names are never used twice."""
    with writing(output) as folder:
        name = f"v{max((_number(name) for name in list_versions(folder)), default=0) + 1}"
        temporary = folder / VERSIONS / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        try:
            yield Draft(folder, name, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _point_to(output: Path, version: str) -> None:
    storage.write_bytes(output / CURRENT, f"{version}\n".encode())


def _sealed(body: Mapping[str, Any]) -> JsonObject:
    return {**body, SEAL: storage.sha256_bytes(storage.to_json(body))}


def _number(name: str) -> int:
    return int(name[1:])


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
