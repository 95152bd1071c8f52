"""Ray tasks in order: a function over a list of arguments, so many at a time, results in the order of the arguments.

Within `here` they are plain calls in this process: a task costs milliseconds, and a write of a few documents has a
dozen of them, each of microseconds. Knows Ray. Knows nothing of indices.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from rayvec.errors import RayvecError, UserError

T = TypeVar("T")
_HERE: ContextVar[bool] = ContextVar("here", default=False)
#: Set by Ray for the driver of a submitted job.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_ON_THIS_NODE: ContextVar[bool] = ContextVar("on_this_node", default=False)


@contextlib.contextmanager
def here() -> Iterator[None]:
    """For the length of the block, what this thread runs is run in this process, by one CPU, without Ray."""
    token = _HERE.set(True)
    try:
        yield
    finally:
        _HERE.reset(token)


@contextlib.contextmanager
def on_this_node() -> Iterator[None]:
    """For the length of the block, tasks of this thread run on the machine of this process, whose folders they need."""
    token = _ON_THIS_NODE.set(True)
    try:
        yield
    finally:
        _ON_THIS_NODE.reset(token)


def require_this_node() -> None:
    """Raise UserError where tasks `on_this_node` would have no CPU. Asks the Ray that runs."""
    with on_this_node():
        _counts("CPU")


def each(
    function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], *, cpus: int = 1, gpus: int = 0
) -> Iterator[T]:
    """Run function(*arguments) as tasks of `cpus` (and `gpus`) each.

    At most twice as many wait as can run: memory stays bounded.
    An error of ours comes back as itself, without Ray's wrapping.
    """
    if _HERE.get():
        yield from (function(*values) for values in arguments)
        return
    for outcome in outcomes(function, arguments, cpus=cpus, gpus=gpus):
        if isinstance(outcome, Exception):
            raise outcome from None
        yield outcome


def outcomes(
    function: Callable[..., T],
    arguments: Iterable[tuple[Any, ...]],
    *,
    cpus: int = 1,
    gpus: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[T | Exception]:
    """As `each`, but a task that fails gives its error in its place, and the others go on.

    environment: variables of the processes that run them, beside those of the cluster.
    """
    import ray

    wanted: dict[str, Any] = {"num_cpus": cpus} | ({"num_gpus": gpus} if gpus else {})
    remote = ray.remote(function).options(**wanted, **_runtime_env(environment), **_placed())
    window = 2 * max(1, cluster_cpus() // cpus)
    waiting: deque[Any] = deque()
    for values in arguments:
        if len(waiting) >= window:
            yield _outcome(waiting.popleft())
        waiting.append(remote.remote(*values))
    while waiting:
        yield _outcome(waiting.popleft())


def start(function: Callable[..., Any], *values: Any, cpus: int = 1) -> Any:
    """Run function(*values) as a task and leave its result in the object store: a reference for other tasks."""
    import ray

    return ray.remote(function).options(num_cpus=cpus, **_placed()).remote(*values)


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


def shared(value: Any) -> Any:
    """The value, put where all tasks find it; a task that is given this is called with the value itself."""
    if _HERE.get():
        return value
    import ray

    return ray.put(value)


def cluster_cpus() -> int:
    """CPUs of the whole cluster, as Ray counts them; of this node where tasks run on it alone."""
    return 1 if _HERE.get() else max(1, sum(_counts("CPU")))


def cluster_gpus() -> int:
    """GPUs of the whole cluster, as Ray counts them; of this node where tasks run on it alone."""
    return 0 if _HERE.get() else sum(_counts("GPU"))


def node_cpus() -> int:
    """CPUs of the smallest node that has any: what a task may ask for and be placed anywhere."""
    return 1 if _HERE.get() else min((count for count in _counts("CPU") if count > 0), default=1)


def _counts(resource: str) -> list[int]:
    """What Ray counts of each node on which tasks may run. Raises UserError where that is one that takes none."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    if _ON_THIS_NODE.get():
        mine = ray.get_runtime_context().get_node_id()
        alive = [node for node in alive if node["NodeID"] == mine]
    counts = [int(node["Resources"].get(resource, 0)) for node in alive]
    if not _ON_THIS_NODE.get() or resource != "CPU":
        return counts
    # The driver of a submitted job may hold one of them (--entrypoint-num-cpus) for as long as it runs.
    free = sum(counts) - (1 if _SUBMITTED in os.environ else 0)
    if free < 1:
        raise UserError(
            "an index in a bucket is worked on where the job's driver runs, and Ray has no CPU for tasks on this "
            f"machine ({sum(counts)} in all, of which a submitted driver may hold one); submit the job with "
            "--entrypoint-num-cpus 1, which takes it to a node that works, of two CPUs or more"
        )
    return [free]


def _placed() -> dict[str, Any]:
    if not _ON_THIS_NODE.get():
        return {}
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)}


def threads(cpus: int) -> int:
    """Threads worth starting in a task that was given `cpus`: Ray may count more CPUs than there are cores."""
    return max(1, min(cpus, os.cpu_count() or 1))


def _outcome(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, RayvecError) else error
    except ray.exceptions.RayError as error:
        return error


def _runtime_env(environment: Mapping[str, str] | None) -> dict[str, Any]:
    return {"runtime_env": {"env_vars": dict(environment)}} if environment else {}
