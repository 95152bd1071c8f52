"""Dynamic batching: requests that wait while the encoder is busy go to it together, up to a budget of tokens.

`serve.batch` gathers before it waits for the batch that runs, so without an added delay each request becomes a batch of
its own, and it counts requests; here the next batch is gathered when the encoder is free, no request waits for company,
and tokens are counted. Knows asyncio and sizes. Knows no model and no Ray, so it runs the same in a test.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    size: int
    since: float
    future: asyncio.Future[tuple[Result, Batched]]


@dataclass(frozen=True)
class Batched:
    """The batch that an item was in: how many items and what size together, and how long the item waited for it."""

    items: int
    tokens: int
    waited_seconds: float


class Batcher(Generic[Item, Result]):
    """Runs `work` over batches of waiting items in a thread of its own, one batch at a time.

    Results come back in the order of the items. An item whose caller has gone away is dropped before the work. An item
    larger than the budget goes alone. After an error in a batch its items are worked at one by one, so that only those
    fail which are to blame.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], budget: int) -> None:
        self._work = work
        self._budget = budget
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        #: Those of a batch that failed, before all others.
        self._suspects: deque[_Waiting[Item, Result]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._since: float | None = None

    @property
    def busy_seconds(self) -> float:
        """For how long the batch that runs now has been running; 0 when none is."""
        return 0.0 if self._since is None else asyncio.get_running_loop().time() - self._since

    async def run(self, item: Item, size: int) -> Result:
        """Wait for a turn, and give the result of one item."""
        result, _ = await self.run_told(item, size)
        return result

    async def run_told(self, item: Item, size: int) -> tuple[Result, Batched]:
        """The same, with the batch that it was in."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Result, Batched]] = loop.create_future()
        self._waiting.append(_Waiting(item, size, loop.time(), future))
        if self._since is None:
            self._start(loop)
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the next batch to the thread, which calls `_finish` on the loop: no task stands between the two."""
        batch = self._take()
        self._since = loop.time() if batch else None
        if batch:
            done = self._thread.submit(self._worked, [waiting.item for waiting in batch])
            done.add_done_callback(partial(self._tell, loop, batch))

    def _tell(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[Item, Result]], done: Future[Sequence[Result]]
    ) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._finish, loop, batch, done)

    def _worked(self, items: list[Item]) -> Sequence[Result]:
        results = self._work(items)
        assert len(results) == len(items), "one result an item"
        return results

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The next items in order of arrival, as many as fit the budget, without those whose caller has gone."""
        while self._suspects:
            if not (suspect := self._suspects.popleft()).future.done():
                return [suspect]
        batch: list[_Waiting[Item, Result]] = []
        total = 0
        while self._waiting:
            waiting = self._waiting[0]
            if not waiting.future.done():
                if batch and total + waiting.size > self._budget:
                    break
                batch.append(waiting)
                total += waiting.size
            self._waiting.popleft()
        return batch

    def _finish(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[Item, Result]], done: Future[Sequence[Result]]
    ) -> None:
        """Hand the results out, or the error; then go on."""
        assert self._since is not None
        start, error = self._since, done.exception()
        if error is None:
            batched = (len(batch), sum(waiting.size for waiting in batch))
            for waiting, result in zip(batch, done.result(), strict=True):
                if not waiting.future.done():
                    waiting.future.set_result((result, Batched(*batched, start - waiting.since)))
        elif len(batch) > 1:
            self._suspects.extend(batch)
        elif not batch[0].future.done():
            batch[0].future.set_exception(error)
        self._start(loop)
