"""Threads for work that blocks, which know for how long they have been at it: one that hangs is seen from outside.

Knows no work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Threads:
    """So many threads of one purpose (None: as many as Python thinks right)."""

    def __init__(self, count: int | None, name: str) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._since: dict[object, float] = {}

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Wait for a thread, and for its work."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work, arguments)

    def _timed(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        this = object()
        self._since[this] = time.monotonic()
        try:
            return work(*arguments)
        finally:
            del self._since[this]

    @property
    def busy_seconds(self) -> float:
        """For how long the longest work has been running; 0 when none is."""
        now = time.monotonic()
        return now - min(list(self._since.values()), default=now)

    def check(self, seconds: float) -> None:
        """Raise RuntimeError when work has been running for longer."""
        if self.busy_seconds > seconds:
            raise RuntimeError(f"{self._name}: the same work has been running for more than {seconds:.0f} s")
