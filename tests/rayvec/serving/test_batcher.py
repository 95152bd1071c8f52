"""Dynamic batching: what goes together, in which order, and what an error or a caller that left does to the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from rayvec.serving.batcher import Batcher


class Held:
    """Work that waits to be released, and keeps the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.release = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.release.wait(10)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [10 * item for item in items]


async def start(batcher: Batcher[int, int], items: Sequence[int], size: int = 1) -> list[asyncio.Task[int]]:
    """Ask for all, and let them arrive."""
    tasks = [asyncio.create_task(batcher.run(item, size)) for item in items]
    await asyncio.sleep(0.02)
    return tasks


def test_what_waits_goes_together_and_in_order() -> None:
    async def run() -> None:
        work = Held()
        batcher = Batcher(work, budget=100)
        tasks = await start(batcher, [1]) + await start(batcher, [2, 3, 4])
        work.release.set()
        assert await asyncio.gather(*tasks) == [10, 20, 30, 40]
        assert work.batches == [[1], [2, 3, 4]]

    asyncio.run(run())


def test_a_batch_keeps_to_the_budget_and_a_larger_item_goes_alone() -> None:
    async def run() -> None:
        work = Held()
        batcher = Batcher(work, budget=10)
        tasks = await start(batcher, [0])
        for items, size in (([1, 2, 3], 4), ([4], 50), ([5], 1)):
            tasks += await start(batcher, items, size)
        work.release.set()
        await asyncio.gather(*tasks)
        assert work.batches == [[0], [1, 2], [3], [4], [5]]

    asyncio.run(run())


def test_an_error_fails_only_the_item_that_is_to_blame() -> None:
    async def run() -> None:
        work = Held()
        batcher = Batcher(work, budget=2)
        tasks = await start(batcher, [1]) + await start(batcher, [13, 2]) + await start(batcher, [3, 4])
        work.release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(result) for result in results] == ["10", "13", "20", "30", "40"]
        assert work.batches == [[1], [13, 2], [13], [2], [3, 4]]

    asyncio.run(run())


def test_who_left_is_not_worked_for() -> None:
    async def run() -> None:
        work = Held()
        batcher = Batcher(work, budget=100)
        first, second, third = await start(batcher, [1]) + await start(batcher, [2, 3])
        second.cancel()
        work.release.set()
        assert (await first, await third) == (10, 30)
        assert work.batches == [[1], [3]]
        with pytest.raises(asyncio.CancelledError):
            await second

    asyncio.run(run())


def test_a_batch_that_hangs_is_seen() -> None:
    async def run() -> None:
        work = Held()
        batcher = Batcher(work, budget=100)
        assert batcher.busy_seconds == 0
        (task,) = await start(batcher, [1])
        assert batcher.busy_seconds > 0
        work.release.set()
        await task
        assert batcher.busy_seconds == 0

    asyncio.run(run())
