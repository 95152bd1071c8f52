"""Versions of an index: written aside, renamed when whole, and only then named by CURRENT. List, roll back, prune.

    output/
      CURRENT               the name of the live version, replaced atomically and last
      HISTORY               the versions that have been live, a line each: a finished one that never was is what a kill
                            just before the swap left, and the next writer removes it. Those that are gone are left out
                            from time to time, but for the highest number that was given
      versions/v1/          a finished version: immutable; `manifest.json` holds the size and SHA-256 of every other
                            file, and a seal of its own. Files that it shares with the version before are hard links
      versions/.v2.….tmp    a build at work, or one that was killed: the next build removes it

Knows folders, checksums and names. Knows no FAISS, no vectors. A local (or mounted) folder only: object stores cannot
rename a folder, and have an arrangement of their own (see `bucket`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayvec import storage, uris
from rayvec.data.embeddings import manifest_uri
from rayvec.errors import ConcurrentWriterError, StorageError, UserError, VerificationError
from rayvec.failures import storage_errors
from rayvec.storage import JsonObject

FORMAT = "rayvec.index/2"
CURRENT = "CURRENT"
HISTORY = "HISTORY"
VERSIONS = "versions"
MANIFEST = "manifest.json"
SEAL = "sha256"
#: Lines of the history about versions that are gone, from which on it is shortened: every write reads all of it.
GONE_LINES = 256
#: How a version that is removed is called until its files are gone.
TRASH = "old"
#: Seconds to wait for another writer, and between two looks: a service's writes hold the index for a moment each.
WAIT_S, POLL_S = 5.0, 0.01
#: What a commit writes itself.
WRITTEN = ("format", "version", "parent", "made", "files", SEAL)
NAME = re.compile(r"v[1-9][0-9]*")


def local_folder(uri: str | Path) -> Path:
    """The folder of an index. Raises UserError for an object store, which cannot rename folders."""
    if not uris.is_local(uri):
        raise UserError(
            f"an index lies in a local or mounted folder, and {uri} is an object store: copy it, or mount it"
        )
    return uris.local_path(uri).absolute()


def list_versions(output: str | Path) -> list[str]:
    """Names of the finished versions, oldest first."""
    names = storage.list_names(local_folder(output) / VERSIONS)
    return sorted((name for name in names if NAME.fullmatch(name)), key=number)


def current(output: str | Path) -> str:
    """The name of the live version.

    Raises UserError when there is no index, or something else, VerificationError when it is damaged.
    """
    folder = local_folder(output)
    try:
        name = (folder / CURRENT).read_bytes().strip().decode("utf-8", "replace")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no index (no {CURRENT} file): build one with python -m jobs.index") from None
    if not NAME.fullmatch(name) or not (folder / VERSIONS / name).is_dir():
        if NAME.fullmatch(name) and storage.exists(manifest_uri(str(folder), number(name))):
            raise UserError(
                f"{folder} holds embeddings, not an index: give the folder of an index, or build one of them with "
                "python -m jobs.index"
            )
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
        return parse_manifest(storage.read_bytes(path), folder.name, path)
    except FileNotFoundError:
        raise VerificationError(f"{path} is missing; restore it or build the index again") from None


def parse_manifest(data: bytes, version: str, place: str | Path) -> JsonObject:
    """The manifest of this version, as it lies at `place`. Raises VerificationError unless it is as it was written."""
    manifest = storage.parse_json(data, place)
    if manifest.get("format") != FORMAT:
        raise VerificationError(f"{place} is not a manifest of {FORMAT}; build the index again with this rayvec")
    # Compared as bytes: a flipped bit may leave equal JSON behind (1e-05 and 1E-05), and is damage all the same.
    body = {key: value for key, value in manifest.items() if key != SEAL}
    if storage.to_json(sealed(body)) != data:
        raise VerificationError(
            f"{place} does not match its own seal; it was damaged or changed: build the index again"
        )
    if manifest["version"] != version:
        raise VerificationError(f"{place} is of version {manifest['version']}, not {version}; files were swapped")
    return manifest


def facts_of(manifest: Mapping[str, Any]) -> JsonObject:
    """What a manifest says beside what every commit writes itself: what a version made after it may take over."""
    return {key: value for key, value in manifest.items() if key not in WRITTEN}


#: A file as it was when its checksum was found right: device, inode, bytes, time of its last change, and the checksum.
Seen = tuple[int, int, int, int, str]


def verify(folder: Path, manifest: Mapping[str, Any], known: frozenset[Seen] = frozenset()) -> frozenset[Seen]:
    """Raise VerificationError, naming the file, unless every file has the size and checksum that the manifest gives.

    known: what the caller has verified before; those very files (a version shares them with the one before by hard
    link) are not read again. Returns what is known now.
    """
    seen = set()
    for name, facts in manifest["files"].items():
        one = seen_as(folder / name, str(facts["sha256"]))
        if one is None or one not in known:
            storage.check_file(folder / name, bytes_=int(facts["bytes"]), sha256=str(facts["sha256"]))
        if one is not None:
            seen.add(one)
    return frozenset(seen)


def seen_as(path: Path, sha256: str) -> Seen | None:
    """What a file is known by, whatever its name; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, sha256


def hold(folder: Path) -> int:
    """Keep a version from being pruned for as long as the descriptor returned is open; the system closes a dead one's.

    Raises UserError when the version is being removed, or is gone.
    """
    try:
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise VerificationError(f"{folder / MANIFEST} is missing; restore it or build the index again") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if folder.is_dir() and os.path.samestat(os.fstat(descriptor), (folder / MANIFEST).stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks: pruning is then for a person who knows what is served
        return descriptor
    os.close(descriptor)
    raise UserError(f"{folder} is being removed; open a version that is there")


def rollback(output: str | Path, version: str | None = None) -> str:
    """Make another version the live one: the one given, or the one that the live was made after. It is verified first.

    Raises UserError when there is no such version, VerificationError when it is damaged: the live one then stays.
    """
    folder = local_folder(output)
    with writing(folder):
        chosen = version_folder(folder, version or _before(folder))
        version = chosen.name
        verify(chosen, read_manifest(chosen))
        point_to(folder, version)
    return version


def _before(folder: Path) -> str:
    live = current(folder)
    return before(live, list_versions(folder), lambda: read_manifest(version_folder(folder, live)), folder)


def before(live: str, there: Sequence[str], manifest: Callable[[], JsonObject], place: str | Path) -> str:
    """The version that was live when the live one was made; where that is gone, the newest older one that is there.

    manifest: reads that of the live version. Raises UserError where there is no older one.
    """
    try:
        parent = manifest().get("parent")
    except VerificationError:  # a damaged version is the best reason to go back
        parent = None
    older = [name for name in there if number(name) < number(live)]
    if not older:
        raise UserError(f"{place} has no version before {live} to go back to")
    return str(parent) if parent in there else older[-1]


def prune(output: str | Path, keep: int = 2) -> list[str]:
    """Remove all but the newest `keep` versions, the live one, and those that a process has open (see `hold`).

    Returns the names removed.
    """
    check_kept(keep)
    folder = local_folder(output)
    with writing(folder):
        gone = remove(folder, list_versions(folder)[:-keep])
        empty_trash(folder)
    return gone


def check_kept(keep: int) -> None:
    """Raise UserError unless a version is kept."""
    if keep < 1:
        raise UserError(f"keep = {keep}: keep at least 1 version")


def remove(folder: Path, names: Iterable[str]) -> list[str]:
    """Take those of these versions away that are neither live nor open; only while `writing`. Returns their names.

    Their files stay until `empty_trash`: a version of many segments has hundreds, and a writer need not wait for them.
    """
    live = current(folder)
    return [name for name in names if name != live and remove_unless_held(folder, name)]


def empty_trash(output: str | Path) -> None:
    """Remove the files of versions that were taken away, if they are still there. Needs no lock."""
    for trash in (local_folder(output) / VERSIONS).glob(f".v*.{TRASH}"):
        shutil.rmtree(trash, ignore_errors=True)


def remove_unless_held(folder: Path, name: str) -> bool:
    """Take a version away unless a process has it open (see `hold`); whether it went."""
    try:
        descriptor = _open_to_lock(folder / VERSIONS / name / MANIFEST)
    except FileNotFoundError:  # damaged: nobody can have it open
        _take_away(folder, name)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is open; or it cannot be known whether it is, and then it stays
        os.close(descriptor)
        return False
    try:
        _take_away(folder, name)
    finally:
        os.close(descriptor)
    return True


def _open_to_lock(path: Path) -> int:
    """For writing, though nothing is written: NFS gives a lock of one's own to no other descriptor."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _remove(folder: Path, name: str) -> None:
    shutil.rmtree(_take_away(folder, name))


def _take_away(folder: Path, name: str) -> Path:
    """Renamed first, so that a reader finds the whole version or none of it. Files shared with others stay there."""
    trash = temporary(folder, name).with_suffix(f".{TRASH}")
    with storage_errors(folder / VERSIONS):
        (folder / VERSIONS / name).rename(trash)
    return trash


def temporary(folder: Path, name: str) -> Path:
    """A folder that no reader looks at, for a version that comes or goes."""
    return folder / VERSIONS / f".{name}.{uuid.uuid4().hex[:8]}.tmp"


@contextlib.contextmanager
def writing(output: str | Path, *, waits: bool = True) -> Iterator[Path]:
    """Hold the output for writing, and remove what killed builds left there. The system frees it however we end.

    waits: for a service's writes, which hold it for a moment each, one after another.
    Raises ConcurrentWriterError when another process goes on holding it, StorageError where the file system has no
    locks.
    """
    folder = local_folder(output)
    storage.make_folder(folder / VERSIONS)
    with storage_errors(folder):
        opened = (folder / ".lock").open("w")
    with opened as lock:
        _lock(lock.fileno(), folder, WAIT_S if waits else 0)
        with storage_errors(folder):
            _sweep(folder)
        try:
            yield folder
        finally:
            _remove_drafts(folder)  # and what workers of a killed writer wrote while they were still at it


def _lock(descriptor: int, folder: Path, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while True:
        try:
            return storage.lock(descriptor, folder)
        except BlockingIOError:
            if time.monotonic() >= end:
                message = f"another process is writing {folder}; wait for it, or choose another"
                raise ConcurrentWriterError(message) from None
        time.sleep(POLL_S)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left: drafts, and a finished version that its writer did not live to make the live."""
    _remove_drafts(folder)
    there = list_versions(folder)
    if not (folder / HISTORY).exists():  # a new index, or a copy without its history: nothing is taken to be left over
        record(folder, *there)
    lived, live = had_lived(folder), live_name(folder)
    record(folder, *(name for name in live if name not in lived))
    newest = max(map(number, [*lived, *live]), default=0)
    for name in there:
        if number(name) > newest:
            _remove(folder, name)
    if len(lived) > len(there) + GONE_LINES:
        kept = {name for name in [*lived, *live] if name in there} | {f"v{newest}"}  # whose number is not given again
        lines = "".join(f"{name}\n" for name in sorted(kept, key=number))
        storage.write_bytes(folder / HISTORY, lines.encode())


def _remove_drafts(folder: Path) -> None:
    for leftover in (folder / VERSIONS).glob(".v*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def had_lived(folder: Path) -> list[str]:
    """The versions that have been live, as far as the history tells; only while `writing`."""
    return [name for name in (folder / HISTORY).read_text(errors="replace").split() if NAME.fullmatch(name)]


def live_name(folder: Path) -> list[str]:
    """The live version; none where there is no index yet, and all where it is not known which."""
    try:
        return [current(folder)]
    except UserError:
        return []
    except VerificationError:  # which of them was live is unknown: all may have been
        return list_versions(folder)


def record(folder: Path, *names: str) -> None:
    """Set down in the history that these versions have been live."""
    if not names and (folder / HISTORY).exists():
        return
    with storage_errors(folder / HISTORY), (folder / HISTORY).open("a") as stream:
        stream.writelines(f"{name}\n" for name in names)
        stream.flush()
        os.fsync(stream.fileno())


def point_to(output: Path, version: str) -> None:
    """Make a finished version the live one. Raises StorageError; then the one before stays live."""
    storage.write_bytes(output / CURRENT, f"{version}\n".encode())
    with contextlib.suppress(OSError, StorageError):  # it is live by now, and the next writer sets down what is
        record(output, version)


def sealed(body: Mapping[str, Any]) -> JsonObject:
    """A manifest with its own checksum."""
    return {**body, SEAL: storage.sha256_bytes(storage.to_json(body))}


def number(name: str) -> int:
    """Versions are counted: v12 is the twelfth."""
    return int(name[1:])
