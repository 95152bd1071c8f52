"""One writer at a time on an output folder.

Local folders are guarded by a lock that the operating system drops with its process, so a killed run leaves none. On an
object store nothing stops a second run early: there the put-if-absent of records and of the manifest keeps them apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from rayvec import storage
from rayvec.errors import ConcurrentWriterError, StorageError

FILE = ".lock"


@contextlib.contextmanager
def sole_writer(output: str) -> Iterator[None]:
    """Hold the output folder. Raises ConcurrentWriterError (exit status 4) when another run holds it."""
    if not storage.is_local(output):
        yield
        return
    storage.make_folder(output)
    try:
        descriptor = os.open(storage.local_path(output) / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{output} may not be written ({error.strerror}); choose another output") from None
    try:
        _lock(descriptor, output)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, output: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "unknown"
        raise ConcurrentWriterError(
            f"another run (process {holder}) is writing {output}; wait for it, or choose another output"
        ) from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
