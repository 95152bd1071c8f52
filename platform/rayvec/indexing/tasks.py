"""Ray tasks in order: a function over a list of arguments, so many at a time, results in the order of the arguments.

Knows Ray. Knows nothing of indices.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rayvec.errors import RayvecError

T = TypeVar("T")


def each(
    function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], *, cpus: int = 1, gpus: int = 0
) -> Iterator[T]:
    """Run function(*arguments) as tasks of `cpus` (and `gpus`) each.

    At most twice as many wait as can run: memory stays bounded.
    An error of ours comes back as itself, without Ray's wrapping.
    """
    import ray

    wanted: dict[str, Any] = {"num_cpus": cpus} | ({"num_gpus": gpus} if gpus else {})
    remote = ray.remote(function).options(**wanted)
    window = 2 * max(1, cluster_cpus() // cpus)
    waiting: deque[Any] = deque()
    for values in arguments:
        if len(waiting) >= window:
            yield _result(waiting.popleft())
        waiting.append(remote.remote(*values))
    while waiting:
        yield _result(waiting.popleft())


def one(function: Callable[..., T], *values: Any, cpus: int = 1, gpus: int = 0) -> T:
    """Run function(*values) as one task."""
    return next(each(function, [values], cpus=cpus, gpus=gpus))


class Clock:
    """Adds up the CPU-seconds of the tasks that it runs, of all their threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def each(
        self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], *, cpus: int = 1, gpus: int = 0
    ) -> Iterator[T]:
        """As the function of that name."""
        work = ((function, *values) for values in arguments)
        for result, seconds in each(_clocked, work, cpus=cpus, gpus=gpus):
            self.seconds += seconds
            yield result

    def one(self, function: Callable[..., T], *values: Any, cpus: int = 1, gpus: int = 0) -> T:
        """As the function of that name."""
        return next(self.each(function, [values], cpus=cpus, gpus=gpus))


def _clocked(function: Callable[..., T], *values: Any) -> tuple[T, float]:
    start = time.process_time()
    result = function(*values)
    return result, time.process_time() - start


def cluster_cpus() -> int:
    """CPUs of the whole cluster, as Ray counts them."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the whole cluster, as Ray counts them."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def node_cpus() -> int:
    """CPUs of the smallest node that has any: what a task may ask for and be placed anywhere."""
    import ray

    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min((count for count in counts if count > 0), default=1)


def threads(cpus: int) -> int:
    """Threads worth starting in a task that was given `cpus`: Ray may count more CPUs than there are cores."""
    return max(1, min(cpus, os.cpu_count() or 1))


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RayvecError):
            raise error.cause from None
        raise
