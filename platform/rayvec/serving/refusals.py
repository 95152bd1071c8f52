"""A version of the index that could not be taken: why, and when it is tried again.

A damaged version does not become whole; a disk that failed, or memory that was short, may be well at the next try.
Knows errors and time. Knows no index.
"""

from __future__ import annotations

import math
import re
import time

from rayvec.errors import RayvecError, StorageError

TRANSIENT = (OSError, StorageError, MemoryError)
#: Between tries, at most.
LONGEST_SECONDS = 60.0
#: What stands before a file's name: a path, or a bucket and its folders.
_FOLDERS = re.compile(r"(?<![\w./])(?:[a-z][a-z0-9+]*:/)?/(?:[^\s/]+/)*")


class NotYetError(RayvecError):
    """A version that cannot be served now, and perhaps soon."""


class Refusal:
    """The last version that was refused, if none was taken since.

    first_seconds: until a transient failure is tried again; twice as long after each further one.
    """

    def __init__(self, first_seconds: float) -> None:
        self._first = first_seconds
        self.clear()

    def clear(self) -> None:
        """A version was taken."""
        self._version = self._reason = self._brief = ""
        self._wait, self._again_at = self._first, math.inf

    def allows(self, version: str) -> bool:
        """Whether it is worth a try now."""
        return version != self._version or time.monotonic() >= self._again_at

    def note(self, version: str, error: Exception) -> bool:
        """It could not be taken. Whether that is news for the log."""
        before = self.told
        if version != self._version:
            self.clear()
        self._version, self._reason = version, str(error) or type(error).__name__
        self._brief = error.brief if isinstance(error, StorageError) and error.brief else self._reason
        if isinstance(error, NotYetError):
            self._again_at = 0.0
        elif isinstance(error, TRANSIENT):
            self._again_at = time.monotonic() + self._wait
            self._wait = min(2 * self._wait, LONGEST_SECONDS)
        return self.told != before and not isinstance(error, NotYetError)

    @property
    def told(self) -> str | None:
        """What the log is to be told of it; None where nothing is refused."""
        return self._told(self._reason)

    @property
    def shown(self) -> str | None:
        """The same for anyone who asks: of files their names alone, and nothing that a store's client says."""
        told = self._told(self._brief)
        return None if told is None else _FOLDERS.sub("", told)

    def _told(self, reason: str) -> str | None:
        again = ", which is tried again" if self._again_at < math.inf else ""
        return f"{self._version}{again}: {reason}" if self._version else None
