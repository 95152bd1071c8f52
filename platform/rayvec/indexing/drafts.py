"""A version being written: files put in or taken over, then sealed, synced, renamed and named by CURRENT.

Knows folders and checksums; see `versions` for what is where. Knows no FAISS, no vectors.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayvec import storage
from rayvec.errors import VerificationError
from rayvec.failures import storage_errors
from rayvec.faults import failpoint
from rayvec.indexing.versions import (
    FORMAT,
    MANIFEST,
    VERSIONS,
    had_lived,
    list_versions,
    live_name,
    number,
    point_to,
    sealed,
    temporary,
    writing,
)
from rayvec.storage import JsonObject

SYNCS_AT_ONCE = 16


@dataclass(frozen=True)
class Draft:
    """A version being written: fill `folder`, then `commit`."""

    output: Path
    name: str
    folder: Path
    #: Files taken over from another version: where they lie there, and their facts in its manifest.
    _taken: dict[str, tuple[Path, JsonObject]] = field(default_factory=dict)

    def take(self, source: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
        """Take files over from a version as they are: by hard link, or as copies where links are not possible.

        Raises VerificationError for one that is missing, StorageError.
        """
        for name in names:
            old, new = source / name, self.folder / name
            with storage_errors(new):
                new.parent.mkdir(parents=True, exist_ok=True)
                try:
                    new.hardlink_to(old)
                except FileNotFoundError:
                    raise VerificationError(f"{old} is missing; roll back, or build the index again") from None
                except OSError:  # another device, a file system without links, or too many of them
                    shutil.copyfile(old, new)
            self._taken[name] = (old, dict(manifest["files"][name]))

    def commit(self, facts: Mapping[str, Any]) -> JsonObject:
        """Seal the manifest over every file in the folder, rename the folder, and make it the live version.

        Raises StorageError; what was live stays live.
        """
        with storage_errors(self.folder):
            return self._commit(facts)

    def _commit(self, facts: Mapping[str, Any]) -> JsonObject:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        places = {self.folder, *(path.parent for path in paths)}
        failpoint("before_seal")
        # All at once: the disk writes its journal once for many that ask; one after the other, each waits for it.
        with ThreadPoolExecutor(SYNCS_AT_ONCE) as threads:
            list(threads.map(_sync, [path for path in paths if not self._is_taken(path)]))
        sums = {name: self._sum(name, path) for path in paths for name in [str(path.relative_to(self.folder))]}
        head = {"format": FORMAT, "version": self.name, "parent": _parent(self.output), "made": _now()}
        manifest = sealed({**head, **facts, "files": sums})
        storage.write_json(self.folder / MANIFEST, manifest)
        with ThreadPoolExecutor(SYNCS_AT_ONCE) as threads:
            list(threads.map(storage.sync_folder, places))  # the names in them, beside the files
        failpoint("before_rename")
        self.folder.rename(self.output / VERSIONS / self.name)
        storage.sync_folder(self.output / VERSIONS)
        failpoint("before_current")
        point_to(self.output, self.name)
        failpoint("after_current")
        return manifest

    def _is_taken(self, path: Path) -> bool:
        """Whether a file is a link to one that a version has, and so on disk already."""
        old, _ = self._taken.get(str(path.relative_to(self.folder)), (path, {}))
        return old != path and path.samefile(old)

    def _sum(self, name: str, path: Path) -> JsonObject:
        """Size and checksum of a file.

        A link is the very file (device and inode) whose checksum is in a sealed manifest, so that is taken over and the
        file is not read: an update costs what is new. Were the file damaged since, its checksum would be wrong in both
        versions, and opening either says so. A copy is read, and must come out the same.
        """
        old, facts = self._taken.get(name, (path, {}))
        if facts and path.samefile(old) and path.stat().st_size == facts["bytes"]:
            return facts
        found = {"bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}
        if facts and facts != found:
            raise VerificationError(f"{old} does not match its checksum; roll back, or build the index again")
        return found


@contextlib.contextmanager
def new_version(output: str | Path, *, waits: bool = True) -> Iterator[Draft]:
    """A draft of the next version; what is not committed when the block ends is removed. Names are never used twice.

    waits: as in `writing`, which also says what it raises.
    """
    with writing(output, waits=waits) as folder:
        given = [*list_versions(folder), *had_lived(folder)]  # one that was removed by hand was seen all the same
        name = f"v{max(map(number, given), default=0) + 1}"
        place = temporary(folder, name)
        with storage_errors(place):
            place.mkdir()
        try:
            yield Draft(folder, name, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _parent(output: Path) -> str | None:
    """The live version, which the next one follows."""
    live = live_name(output)
    return live[0] if len(live) == 1 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
