"""One writer at a time on an output.

A local folder is guarded by a lock that the operating system drops with its process, so a killed run leaves none. On an
object store a run holds a lease: the file `.lease/<number>.json`, put if absent, that its owner writes again and again
with a counter. The highest number is the holder's. A run that finds another's lease watches it: a counter that moves is
a run at work, and this one is refused; one that stands still for as long as a lease lasts belongs to a run that died,
and the next number is put. No clock of another machine is read, nor compared with ours. A run that was only asleep sees
the higher number and stops; what it wrote meanwhile is kept apart by the put-if-absent of records and of the manifest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rayvec import storage, uris
from rayvec.errors import ConcurrentWriterError, RayvecError, StorageError, UserError

FILE = ".lock"
FOLDER = ".lease"
#: How long a lease outlives the last sign of life of its owner.
LEASE_S = 60.0
#: Signs of life, and looks at another's, in the time that a lease lasts.
BEATS = 6

log = logging.getLogger(__name__)


class Guard:
    """What a holder asks before it does what cannot be undone."""

    def check(self) -> None:
        """Raise ConcurrentWriterError when another run has taken over. A local lock is never lost."""


@contextlib.contextmanager
def sole_writer(output: str, lease_s: float = LEASE_S) -> Iterator[Guard]:
    """Hold the output. Raises ConcurrentWriterError (exit status 4) when another run holds it, UserError without locks.

    lease_s: seconds after which the lease of a killed run no longer counts, on an object store.
    """
    if not uris.is_local(output):
        with _leased(output, lease_s) as lease:
            yield lease
        return
    storage.make_folder(output)
    try:
        descriptor = os.open(uris.local_path(output) / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{output} may not be written ({error.strerror}); choose another output") from None
    try:
        _lock(descriptor, output)
        yield Guard()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, output: str) -> None:
    try:
        storage.lock(descriptor, output)
    except BlockingIOError:
        holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "unknown"
        raise ConcurrentWriterError(
            f"another run (process {holder}) is writing {output}; wait for it, or choose another output"
        ) from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


@dataclass
class Lease(Guard):
    """The lease that this run holds."""

    output: str
    number: int
    #: Unlike any other's, so that an answer that was lost can be told from a refusal.
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    beats: int = 0
    #: Why this run may write no more.
    lost: RayvecError | None = None

    @property
    def uri(self) -> str:
        """Of its file, which nobody else writes."""
        return _uri(self.output, self.number)

    def content(self, released: bool = False) -> bytes:
        """What the file says of it; the host and the process are for people."""
        owner = {"host": socket.gethostname(), "process": os.getpid(), "token": self.token}
        return storage.to_json({**owner, "beats": self.beats, "released": released})

    def check(self) -> None:
        """See Guard."""
        if self.lost is not None:
            raise self.lost

    def beat(self) -> None:
        """Give a sign of life, and see whether another run has taken over."""
        newest = _newest(self.output)
        if newest != self.number:
            self.lost = ConcurrentWriterError(
                f"{_holder(_read(self.output, newest))} has taken over {self.output}, since this run gave no sign of "
                "life for long; leave it to that run, or start this one again when that has ended"
            )
            return
        self.beats += 1
        storage.write_bytes(self.uri, self.content())

    def release(self) -> None:
        """Leave the output free. The file stays: numbers are never given twice."""
        if self.lost is None:
            try:
                storage.write_bytes(self.uri, self.content(released=True))
            except StorageError as error:
                log.warning("the lease could not be released, and will expire by itself: %s", error)


@contextlib.contextmanager
def _leased(output: str, lease_s: float) -> Iterator[Lease]:
    lease = _acquire(output, lease_s)
    ended = threading.Event()
    beating = threading.Thread(target=_keep, args=(lease, lease_s, ended), name="lease", daemon=True)
    beating.start()
    try:
        yield lease
    finally:
        ended.set()
        beating.join()
        lease.release()


def _acquire(output: str, lease_s: float) -> Lease:
    newest = _newest(output)
    if newest:
        _wait_until_free(output, newest, lease_s)
    return _claim(output, newest + 1)


def _claim(output: str, number: int) -> Lease:
    """Put the lease of this number, and remove those before it."""
    lease = Lease(output, number)
    if not storage.put_if_absent(lease.uri, lease.content()):
        raise ConcurrentWriterError(_refusal(output, _read(output, number)))
    if storage.put_if_absent(lease.uri, b"{}\n"):  # some stores take such a write for any other
        raise UserError(
            f"the store of {output} overwrites what is to be written only if absent (If-None-Match), which keeps two "
            "runs apart; choose a store that heeds it, or a folder"
        )
    numbers = _numbers(output)
    if numbers[-1] != number:  # others came and went since we looked, and removed what was there
        storage.delete(lease.uri)
        raise ConcurrentWriterError(_refusal(output, _read(output, numbers[-1])))
    for old in numbers[:-1]:
        storage.delete(_uri(output, old))
    return lease


def _wait_until_free(output: str, number: int, lease_s: float) -> None:
    """Return when the lease is released, or its owner gave no sign of life for `lease_s` by our own stopwatch."""
    seen = _read(output, number)
    if not seen.get("released"):
        log.info("%s is held by %s; seeing for up to %g s whether it is alive", output, _holder(seen), lease_s)
    stop = time.monotonic() + lease_s
    while not seen.get("released") and time.monotonic() < stop:
        time.sleep(lease_s / BEATS / 4)
        now = _read(output, number)
        if not now.get("released") and now != seen:
            raise ConcurrentWriterError(_refusal(output, now))
        seen = now


def _keep(lease: Lease, lease_s: float, ended: threading.Event) -> None:
    """Give signs of life until the run ends or the lease is lost: taken, or not renewed for as long as it lasts."""
    alive = time.monotonic()
    while lease.lost is None and not ended.wait(lease_s / BEATS):
        began = time.monotonic()
        try:
            lease.beat()
            alive = began
        except RayvecError as error:
            if time.monotonic() - alive > lease_s:
                lease.lost = StorageError(
                    f"the lease on {lease.output} could not be renewed for {lease_s:g} s: {error}"
                )


def _uri(output: str, number: int) -> str:
    return uris.join(output, FOLDER, f"{number:06d}.json")


def _numbers(output: str) -> list[int]:
    names = storage.list_names(uris.join(output, FOLDER))
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def _newest(output: str) -> int:
    return max(_numbers(output), default=0)


def _read(output: str, number: int) -> dict[str, Any]:
    """What a lease says; as if released when its file went, which happens when a newer one has been put."""
    try:
        return storage.read_json(_uri(output, number))
    except FileNotFoundError:
        return {"released": True}


def _holder(content: dict[str, Any]) -> str:
    return f"process {content.get('process')} on {content.get('host')}"


def _refusal(output: str, content: dict[str, Any]) -> str:
    return f"another run ({_holder(content)}) is writing {output}; wait for it, or choose another output"
