"""The map of the index version that is served: drawn once, beside the searches, when it is asked for first.

One map is kept, and one is drawn at a time. Knows the event loop and `indexing.maps`. Knows no route.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rayvec.serving.problems import unavailable

if TYPE_CHECKING:
    from rayvec.indexing.maps import Map
    from rayvec.indexing.searcher import Index

_LOG = logging.getLogger(__name__)

#: What a search waits for a map that is being drawn: most are drawn by then, and a search is not kept for the others.
SOON_SECONDS = 2.0


class Cartographer:
    """Draws maps in a thread of its own. All its methods are called on one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="map")
        self._map: Map | None = None
        self._drawing: asyncio.Future[None] | None = None
        self._failed: str | None = None

    def peek(self, index: Index) -> Map | None:
        """The map of this version if it is drawn; else it is begun, and there is none yet."""
        if self._map is not None and self._map.version == index.version:
            return self._map
        if self._failed != index.version:
            self._begin(index)
        return None

    async def soon(self, index: Index) -> Map | None:
        """The map of this version if it is drawn within a moment; it is drawn to the end in any case."""
        if self.peek(index) is None and self._drawing is not None:
            await asyncio.wait([self._drawing], timeout=SOON_SECONDS)
        return self.peek(index)

    async def drawn(self, index: Index) -> Map:
        """The map of this version, as soon as it is drawn; giving up waiting does not stop it."""
        while self._map is None or self._map.version != index.version:
            await asyncio.shield(self._begin(index))
            if self._failed == index.version:
                self._failed = None  # whoever asks again has it tried again
                raise unavailable("the map of this index could not be drawn; the service's log says why", "no_map")
        return self._map

    def _begin(self, index: Index) -> asyncio.Future[None]:
        if self._drawing is None or self._drawing.done():
            self._drawing = asyncio.ensure_future(self._draw(index))
        return self._drawing

    async def _draw(self, index: Index) -> None:
        from rayvec.indexing.maps import draw

        try:
            self._map = await asyncio.get_running_loop().run_in_executor(self._thread, draw, index)
        except Exception as error:  # searches go on without a map
            self._failed = index.version
            _LOG.warning("no map of index %s: %s", index.version, error, exc_info=error)
