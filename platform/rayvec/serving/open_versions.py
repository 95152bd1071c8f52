"""Versions of an index that a process holds open: each is loaded once, off the event loop, and the last ones are kept.

Knows the index. Knows no request, no HTTP, no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayvec.indexing.searcher import Index


class OpenVersions:
    """Opens versions by name and keeps the last `keep` that were asked for.

    opener: opens one (None: the live one); it is given the last that was opened, with which a new one shares files.
    """

    def __init__(self, opener: Callable[[str | None, Index | None], Index], keep: int = 2) -> None:
        self._opener = opener
        self._keep = keep
        self._open: dict[str, Index] = {}
        self._loading: dict[str | None, asyncio.Task[Index]] = {}
        # A load takes long, and no search waits for it.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def last(self) -> Index | None:
        """The one that was asked for last."""
        return next(reversed(self._open.values()), None)

    async def get(self, version: str | None) -> Index:
        """A version, loaded now unless it is open. A load goes on where who asked for it has gone.

        Raises what the opener raises.
        """
        if version in self._open:
            self._open[version] = self._open.pop(version)
            return self._open[version]
        task = self._loading.get(version)
        if task is None:
            task = self._loading[version] = asyncio.create_task(self._load(version))
        return await asyncio.shield(task)

    async def _load(self, version: str | None) -> Index:
        try:
            index = await asyncio.get_running_loop().run_in_executor(self._loader, self._opener, version, self.last)
        finally:
            del self._loading[version]
        self._open.pop(index.version, None)
        self._open[index.version] = index
        while len(self._open) > self._keep:
            del self._open[next(iter(self._open))]
        return index
