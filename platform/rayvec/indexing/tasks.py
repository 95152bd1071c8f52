"""Ray tasks in order: a function over a list of arguments, so many at a time, results in the order of the arguments.

Knows Ray. Knows nothing of indices.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rayvec.errors import RayvecError

T = TypeVar("T")


def each(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], *, cpus: int = 1) -> Iterator[T]:
    """Run function(*arguments) as tasks of `cpus` each. At most twice as many wait as can run: memory stays bounded.

    An error of ours comes back as itself, without Ray's wrapping.
    """
    import ray

    remote = ray.remote(function).options(num_cpus=cpus)
    window = 2 * max(1, cluster_cpus() // cpus)
    waiting: deque[Any] = deque()
    for values in arguments:
        if len(waiting) >= window:
            yield _result(waiting.popleft())
        waiting.append(remote.remote(*values))
    while waiting:
        yield _result(waiting.popleft())


def one(function: Callable[..., T], *values: Any, cpus: int = 1) -> T:
    """Run function(*values) as one task."""
    return next(each(function, [values], cpus=cpus))


def shared(value: Any) -> Any:
    """The value, put where all tasks find it; a task that is given this is called with the value itself."""
    import ray

    return ray.put(value)


def cluster_cpus() -> int:
    """CPUs of the whole cluster, as Ray counts them."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


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
