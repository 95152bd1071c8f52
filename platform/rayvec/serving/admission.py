"""Who may come in: places for requests that run, how long they may take, and the end, when nobody new may.

Knows asyncio and limits. Knows no route, no model, no index.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rayvec.serving.config import Limits
from rayvec.serving.metrics import Metrics
from rayvec.serving.problems import overloaded, stopping, unavailable

#: Between looks at whether the requests under way are answered.
DRAIN_POLL = 0.02


class Admission:
    """The places of one gateway."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._places: set[asyncio.Timeout] = set()
        #: Requests of every kind, from their arrival to the last byte of their answer.
        self._open = 0
        #: When what is under way must end: the loop's time.
        self._ends_at = math.inf

    @property
    def is_full(self) -> bool:
        """Whether a request for work would be refused now."""
        return len(self._places) >= self._limits.in_flight

    @property
    def is_draining(self) -> bool:
        """Whether no new requests are taken."""
        return self._ends_at < math.inf

    def arrived(self) -> None:
        """A request of any kind is there: `drain` waits until it `left`."""
        self._open += 1

    def left(self) -> None:
        """The last byte of its answer is sent, or its client has gone."""
        self._open -= 1

    async def drain(self, seconds: float) -> bool:
        """Take no new requests, and wait until those under way are answered; whether they were, in so many seconds.

        A little before, those for which work is still done are answered 503.
        """
        end = asyncio.get_running_loop().time() + seconds
        self._ends_at = end - seconds / 10
        for place in self._places:
            place.reschedule(min(place.when() or math.inf, self._ends_at))
        while self._open and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(DRAIN_POLL)
        return not self._open

    @asynccontextmanager
    async def place(self, late: str = "; send less, or try again") -> AsyncIterator[None]:
        """Take one of the places for running requests, or refuse at once; and give up when it takes too long.

        Raises Problem 429 where all are taken, 503 for what takes too long. late: what its client should do then.
        """
        if self.is_full:
            raise overloaded()
        end = min(asyncio.get_running_loop().time() + self._limits.timeout_seconds, self._ends_at)
        place = asyncio.timeout_at(end)
        self._places.add(place)
        self._metrics.in_flight(len(self._places))
        try:
            async with place:
                yield
        except TimeoutError:
            if self.is_draining:
                raise stopping() from None
            message = f"not done within {self._limits.timeout_seconds:g} s{late}"
            raise unavailable(message, code="timeout") from None
        finally:
            self._places.remove(place)
            self._metrics.in_flight(len(self._places))
