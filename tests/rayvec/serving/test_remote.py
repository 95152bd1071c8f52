"""Calls of parts in other processes: what is tried once more, and what a client hears of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from rayvec.serving.problems import Problem
from rayvec.serving.remote import _call

OBJECT = ("00" * 28, None, "")


class Method:
    """A handle's method that raises so often before it answers."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    async def remote(self, *arguments: int) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return sum(arguments)


GONE: list[RayError] = [
    ActorDiedError(),
    ActorUnavailableError("the node is gone", None),
    NodeDiedError("the node is gone"),
    WorkerCrashedError(),
    ObjectLostError(*OBJECT),
    OwnerDiedError(*OBJECT),
    RayTaskError("search", "a trace", ActorDiedError()),
]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_another_replica_is_asked_once_when_one_is_gone(error: Exception) -> None:
    assert asyncio.run(_call(Method(error, 1), 1, 2)) == 3
    method = Method(error, 9)
    with pytest.raises(Problem) as refused:
        asyncio.run(_call(method))
    assert (refused.value.status_code, refused.value.code, method.calls) == (503, "unavailable", 2)


@pytest.mark.parametrize("error", [RayTaskError("search", "a trace", ValueError("x")), OutOfMemoryError("too much")])
def test_what_would_fail_again_is_not_tried_again(error: Exception) -> None:
    method = Method(error, 9)
    with pytest.raises(type(error)):
        asyncio.run(_call(method))
    assert method.calls == 1


class Response:
    """A handle's answer that does not come."""

    cancelled = False

    def __await__(self) -> Generator[Any]:
        return asyncio.sleep(60).__await__()

    def cancel(self) -> None:
        self.cancelled = True


def test_past_its_deadline_the_other_process_is_told_to_leave_off() -> None:
    response = Response()

    async def ask() -> None:
        async with asyncio.timeout(0.01):
            await _call(SimpleNamespace(remote=lambda: response))

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert response.cancelled
