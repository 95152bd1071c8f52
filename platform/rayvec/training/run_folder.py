"""The folder of a run: a local path that all workers see, or a URI with a copy on each machine that takes part.

A machine works in `local`; what others need is pushed to the URI and pulled from there. Knows files and URIs. Knows
no stage and no Ray.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayvec import storage, uris
from rayvec.errors import VerificationError
from rayvec.training import checkpoints


@dataclass(frozen=True)
class RunFolder:
    """Where a run reads and writes. uri: an absolute path, or any URI that `storage` opens.

    run: the name that a run at a URI was given at its first start, so that what an earlier run at the same URI left on
    this machine is never taken for its own.
    """

    uri: str
    run: str = ""

    @property
    def remote(self) -> bool:
        """Whether machines work on copies."""
        return not uris.is_local(self.uri)

    @property
    def local(self) -> Path:
        """Where this machine works: the folder itself, or a place of its own in the user's cache."""
        if not self.remote:
            return uris.local_path(self.uri)
        return storage.cache_folder("runs", self.uri) / self.run

    @property
    def checkpoints(self) -> str:
        """Where checkpoints go."""
        return uris.join(self.uri, "training", "checkpoints")

    def push(self, name: str, *, last: str = "") -> None:
        """Copy a file or folder of this machine to the URI; of a folder, the file `last` goes last."""
        if self.remote:
            storage.copy_tree(self.local / name, uris.join(self.uri, name), last=last)

    def pull(self, name: str, *, last: str) -> Path:
        """A folder on this machine: copied from the URI unless it is there. `last` is the file that makes it whole."""
        folder = self.local / name
        if not self.remote or (folder / last).exists():
            return folder
        with _alone(folder):
            if not (folder / last).exists():
                storage.copy_tree(uris.join(self.uri, name), folder, last=last)
        return folder

    def pull_file(self, name: str) -> Path:
        """A file on this machine as it is at the URI, if it is there; rank 0 may have written it elsewhere."""
        if self.remote and storage.exists(there := uris.join(self.uri, name)):
            storage.copy_tree(there, self.local / name)
        return self.local / name

    def newest_checkpoint(self, root: str | None = None) -> Path | None:
        """The whole checkpoint with the highest step, on this machine; torn ones are passed over.

        root: look below this path or URI instead of the run's own checkpoints.
        """
        root = self.checkpoints if root is None else root
        if uris.is_local(root):
            return checkpoints.newest(uris.local_path(root))
        for name in _by_step(root):
            folder = self.local / "training" / "fetched" / storage.sha256_bytes(f"{root}/{name}".encode())[:16]
            with _alone(folder):
                if _fetch_whole(uris.join(root, name), folder):
                    return folder
        return None

    def sweep(self, keep: int) -> None:
        """Of the run's checkpoints leave the newest `keep`; torn ones, and those that Ray lost sight of, go."""
        shutil.rmtree(self.local / "training" / "fetched", ignore_errors=True)
        if self.remote:
            for name in _by_step(self.checkpoints)[keep:]:
                storage.delete_tree(uris.join(self.checkpoints, name))
            return
        whole: list[tuple[int, Path]] = []
        for folder in [path for path in uris.local_path(self.checkpoints).glob("attempt-*/*") if path.is_dir()]:
            try:
                whole.append((checkpoints.verify(folder).step, folder))
            except VerificationError:
                shutil.rmtree(folder)
        for _, folder in sorted(whole)[:-keep]:
            shutil.rmtree(folder)

    def clear(self, name: str) -> None:
        """Remove a folder on this machine and at the URI."""
        shutil.rmtree(self.local / name, ignore_errors=True)
        if self.remote:
            storage.delete_tree(uris.join(self.uri, name))


def _by_step(root: str) -> list[str]:
    """Folders below a URI that hold a checkpoint, the furthest first."""
    found = []
    for name in storage.list_tree(root):
        folder, _, file = name.rpartition("/")
        if file == checkpoints.record_name(0):
            try:
                step = int(storage.read_json(uris.join(root, name)).get("step", -1))
            except (VerificationError, ValueError, TypeError):
                continue
            found.append((step, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def _fetch_whole(uri: str, folder: Path) -> bool:
    """Copy a checkpoint here unless it is here; whether it is whole."""
    for there in (folder.exists(), False):
        if not there:
            shutil.rmtree(folder, ignore_errors=True)
            storage.copy_tree(uri, folder)
        try:
            checkpoints.verify(folder)
        except VerificationError:
            continue
        return True
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time fills a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
