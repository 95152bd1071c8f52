"""An index whose vectors lie in several processes: a part holds some shards, and a search asks all parts.

`VectorPart` is one of them; `Scatter` asks them and tells who did not answer; `ScatteredIndex` is searched as any index
is. Every search names its version, so that no answer is put together from two. Plain classes, without Ray.

Shapes: Q queries, R dimensions indexed, K results a query.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from pydantic import TypeAdapter

from rayvec.fingerprint import Fingerprint
from rayvec.indexing.filters import Filter
from rayvec.indexing.part import Part
from rayvec.indexing.ranking import Ranking, Rows
from rayvec.indexing.searcher import Index
from rayvec.indexing.selection import Selection
from rayvec.indexing.shards import merge_rankings
from rayvec.indexing.vectors import Vectors
from rayvec.serving.open_versions import OpenVersions
from rayvec.serving.problems import Problem, unavailable
from rayvec.serving.refusals import Refusal
from rayvec.serving.threads import Threads

_LOG = logging.getLogger(__name__)
#: After a part did not answer, it is not asked for so long: a search need not wait for it each time.
REST_SECONDS = 1.0
FILTERS: TypeAdapter[Filter] = TypeAdapter(Filter)


class PartService(Protocol):
    """What a search asks of a part, here or in another process."""

    async def nearest(self, version: str, queries_QR: Vectors, k: int, filter_: str | None) -> Ranking:
        """The nearest of its own rows."""

    async def vectors(self, version: str, rows_N: Rows) -> Vectors:
        """Vectors of its own rows."""


class VectorPart:
    """Some of the shards of an index, in whichever of its last versions is asked for.

    It looks every `poll_seconds` which version is live, and loads that before it is asked for.
    """

    def __init__(
        self,
        uri: str,
        part: Part,
        expected: Fingerprint | None = None,
        poll_seconds: float = 2.0,
        timeout_seconds: float = 30.0,
    ) -> None:
        self._uri = uri
        self._part = part
        self._expected = expected
        self._poll_seconds = poll_seconds
        self._timeout_seconds = timeout_seconds
        self._versions = OpenVersions(self._open)
        self._threads = Threads(None, "part")
        self._follower: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve: load the version named, or (None) the live one and those that follow it."""
        await self._versions.get(user_config.get("version"))
        if self._follower is not None:
            self._follower.cancel()
        self._follower = asyncio.create_task(self._follow()) if user_config.get("version") is None else None

    async def _follow(self) -> None:
        from rayvec.indexing import places
        from rayvec.indexing.versions import CURRENT

        refusal = Refusal(self._poll_seconds)
        while True:
            await asyncio.sleep(self._poll_seconds)
            name = CURRENT
            try:
                name = await asyncio.to_thread(places.current, self._uri)
                if refusal.allows(name):
                    await self._versions.get(name)
                    refusal.clear()
            except Exception as error:  # who asks for that version is told; the others go on
                if refusal.note(name, error):
                    _LOG.warning("part %s: index version refused: %s", self._part.number, refusal.told)

    def _open(self, version: str | None, before: Index | None) -> Index:
        index = Index.open(self._uri, version, before=before, part=self._part)
        if self._expected is not None:
            index.fingerprint.require(self._expected, mine="index", theirs="encoder")
        return index

    async def nearest(self, version: str, queries_QR: Vectors, k: int, filter_: str | None) -> Ranking:
        """The k nearest of its live rows that pass the filter (as JSON), or as many as there are."""
        index = await self._versions.get(version)
        return await self._threads.run(_nearest, index, queries_QR, k, filter_)

    async def vectors(self, version: str, rows_N: Rows) -> Vectors:
        """The vectors of some of its rows, float32 [N, R]."""
        index = await self._versions.get(version)
        return await self._threads.run(index.vectors, rows_N)

    async def check_health(self) -> None:
        """Called by Serve: a search that hangs (a stuck disk) makes the part be restarted."""
        self._threads.check(2 * self._timeout_seconds)


def _nearest(index: Index, queries_QR: Vectors, k: int, filter_: str | None) -> Ranking:
    selection = None if filter_ is None else index.select(FILTERS.validate_json(filter_))
    return index.nearest(queries_QR, k, selection)


class Scatter:
    """Asks parts from a search's thread, while their answers come in on the event loop."""

    def __init__(self, parts: Sequence[PartService], seconds: float) -> None:
        self._parts = list(parts)
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._rests_until = [0.0] * len(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def resting(self) -> list[int]:
        """Parts that did not answer a moment ago."""
        now = time.monotonic()
        return [number for number, until in enumerate(self._rests_until) if until > now]

    def ask(self, numbers: Sequence[int], call: Callable[[PartService], Awaitable[Any]]) -> dict[int, Any]:
        """The answers of these parts; of those that do not answer in time, none. Not for the event loop's thread."""
        return asyncio.run_coroutine_threadsafe(self._ask(numbers, call), self._loop).result()

    async def _ask(self, numbers: Sequence[int], call: Callable[[PartService], Awaitable[Any]]) -> dict[int, Any]:
        asked = [number for number in numbers if number not in self.resting]
        answers = await asyncio.gather(*(self._one(number, call) for number in asked))
        return {number: answer for number, answer in zip(asked, answers, strict=True) if answer is not None}

    async def _one(self, number: int, call: Callable[[PartService], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._seconds):
                return await call(self._parts[number])
        except Problem as problem:
            if problem.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                raise
            reason = str(problem.detail)
        except TimeoutError:
            reason = f"no answer within {self._seconds:g} s"
        except Exception as error:  # a shard that cannot be read there; what the others hold can be searched
            reason = str(error)
        self._rests_until[number] = time.monotonic() + REST_SECONDS
        _LOG.warning("part %s of the vectors does not answer: %s", number, reason)
        return None


class ScatteredIndex(Index):
    """An index without shards, whose dense searches ask the parts; one `for_request` notes which are missing."""

    scatter: Scatter
    missing: frozenset[int] = frozenset()

    @classmethod
    def over(cls, scatter: Scatter, uri: str | Path, version: str | None, before: Index | None) -> Self:
        """Open all but the shards. Raises as `Index.open` does."""
        index = cls.open(uri, version, before=before, part=Part(None, len(scatter)))
        index.scatter = scatter
        return index

    def for_request(self) -> Self:
        """The same index, for one request."""
        return copy.copy(self)

    @property
    def coverage(self) -> float:
        """The share of the vectors in parts that have answered."""
        rows = [Part(number, len(self.scatter)).rows(self.manifest) for number in range(len(self.scatter))]
        return 1.0 - sum(rows[number] for number in self.missing) / sum(rows)

    def nearest(self, queries: Vectors, k: int, selection: Selection | None = None) -> Ranking:
        """The k nearest of the parts that answer. Raises Problem 503 when none does."""
        version, passed = self.version, None if selection is None else selection.filter
        found = self._ask(range(len(self.scatter)), lambda part: part.nearest(version, queries, k, passed))
        return merge_rankings(list(found.values()), k)

    def vectors(self, rows: Sequence[int] | Rows) -> Vectors:
        """The vectors of these rows. Raises Problem 503 when a part that holds one does not answer."""
        version, wanted = self.version, np.asarray(rows, dtype=np.int64)
        part_of = self._parts_of(wanted)
        vectors = np.empty((len(wanted), int(self.manifest["dim_index"])), np.float32)
        for number in np.unique(part_of).tolist():
            some = part_of == number
            found = self._ask([number], partial(_vectors, version=version, rows=wanted[some]))
            vectors[some] = found[number]
        return vectors

    def _parts_of(self, rows: Rows) -> Rows:
        starts = np.array([int(entry["start"]) for entry in self.manifest["shards"]], np.int64)
        return (np.searchsorted(starts, rows, side="right") - 1) % len(self.scatter)

    def _ask(self, numbers: Sequence[int], call: Callable[[PartService], Awaitable[Any]]) -> dict[int, Any]:
        found = self.scatter.ask(numbers, call)
        self.missing |= frozenset(numbers) - frozenset(found)
        if not found:
            raise unavailable("no part of the vectors answers; try again shortly", code="shards_missing")
        return found


def _vectors(part: PartService, version: str, rows: Rows) -> Awaitable[Vectors]:
    return part.vectors(version, rows)
