"""Ray Train around the workers: a group of processes, their checkpoints, their failures.

Every start of a run is an attempt with a name of its own, which goes on from the newest checkpoint whose checksums
match; so Ray's own snapshot of a run, which a kill may tear, is never needed. Knows Ray. Knows no stage and no model.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayvec import storage
from rayvec.config import Config
from rayvec.errors import RayvecError, UserError
from rayvec.training.job import Job
from rayvec.training.loop import Metrics, Progress
from rayvec.training.memory import lacks_memory, memory_advice
from rayvec.training.metrics import RunMetrics
from rayvec.training.run_folder import RunFolder
from rayvec.training.stages import TrainingConfig
from rayvec.training.worker import Outcome, work

LOG = logging.getLogger("rayvec.training")
#: Seconds that Ray gives a group to start in: busy machines need longer than its own 60 to import torch. Then it tries
#: again, of itself for ever; here so often in all, which is an hour where no room is found, or `wait_s` if longer.
START_S, STARTS = 300.0, 12
START_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
#: Seconds between two signs of life of a worker, and without one after which, and as often, the driver says so.
ALIVE_S, SILENT_S = 10.0, 60.0


class Workers(Config):
    """The group of worker processes."""

    count: int = 1
    #: The group may shrink to so many when machines are lost, and grows again when they come back; None: never.
    least: int | None = None
    cpus: int = 1
    gpu: bool = False
    #: Starts again after a lost worker, from the last checkpoint (Ray's own default is never).
    max_failures: int = 2
    #: Seconds to wait for room where others' work fills the cluster.
    wait_s: float = 0.0

    @property
    def fewest(self) -> int:
        """With fewer the group does not start."""
        return self.count if self.least is None else self.least

    @property
    def each(self) -> dict[str, int]:
        """What one of them asks of its node."""
        return {"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})}

    @property
    def starts(self) -> int:
        """How often the group is started anew for want of room."""
        return max(STARTS, math.ceil(self.wait_s / float(os.environ.get(START_VARIABLE, START_S))))

    @property
    def told(self) -> str:
        """How many of them need what, in words."""
        each = " and ".join(f"{value} {name}{'s' if value > 1 else ''}" for name, value in self.each.items())
        return f"{self.fewest} workers of {each} each"


class Board:
    """What rank 0 says, for the driver to show; an actor, since the two may be on different machines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.heard = time.monotonic()

    def live(self) -> None:
        """A worker's sign of life."""
        self.heard = time.monotonic()

    def silent(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.heard

    def add(self, line: str) -> None:
        """A line more."""
        self.lines.append(line)

    def take(self) -> list[str]:
        """The lines that were added since the last call."""
        taken, self.lines = self.lines, []
        return taken


@dataclass
class RayLink:
    """A worker's line to Ray Train and to the driver."""

    folder: RunFolder
    board: Any
    metrics: RunMetrics

    def resume_from(self) -> Path | None:
        """The newest whole checkpoint of any attempt; the same on every rank, since nobody writes while a group starts.

        Ray forgets a checkpoint that was reported in the two seconds before a worker died. Its files are there.
        """
        return self.folder.newest_checkpoint()

    def commit(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Report a checkpoint: every rank writes its own files, Ray puts them into one folder. A barrier."""
        from ray import train

        with tempfile.TemporaryDirectory(prefix="rayvec-checkpoint-") as folder:
            write(Path(folder))
            train.report({"step": step, **metrics}, checkpoint=train.Checkpoint.from_directory(folder))

    def say(self, line: str) -> None:
        """Tell the driver; it shows the line within a second."""
        self.board.add.remote(line)

    def logged(self, progress: Progress) -> None:
        """Tell Prometheus."""
        self.metrics.set(progress)


@contextlib.contextmanager
def _board(workers: Workers) -> Iterator[Any]:
    """A board whose lines are shown as they come: Ray's own forwarding would bring its workers' noise along.

    Where no worker is alive for long, that is said too: Ray waits for room, or starts the group again, without a word.
    """
    import ray

    board: Any = ray.remote(num_cpus=0)(Board).remote()
    done = threading.Event()

    def follow() -> None:
        last, told = False, SILENT_S
        while not last:
            last = done.wait(0.5)
            with contextlib.suppress(ray.exceptions.RayError):
                lines, silent = ray.get([board.take.remote(), board.silent.remote()])
                for line in lines:
                    LOG.info(line)
                if silent < SILENT_S:
                    told = SILENT_S
                elif silent >= told and not last:
                    told = silent + SILENT_S
                    LOG.warning(_waiting(workers, silent))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        done.set()
        thread.join(timeout=10)
        ray.kill(board)


def _waiting(workers: Workers, seconds: float) -> str:
    """What is waited for, and what is there."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    there = " and ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in workers.each)
    return f"no worker at work for {seconds:.0f} s: the group is {workers.told}, and the cluster has {there} free"


def run(job: Job, workers: Workers) -> Outcome:
    """Run a job on a group of Ray workers; Ray must be up. Raises UserError; RayvecError when workers keep failing."""
    import ray

    os.environ.setdefault(START_VARIABLE, str(START_S))
    require_room(workers, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    with _board(workers) as board:
        return _run(job, workers, board)


def _run(job: Job, workers: Workers, board: Any) -> Outcome:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    root = job.folder.checkpoints
    storage.make_folder(root)
    filesystem, path = storage.filesystem(root)
    # Train v2 only, which its stubs leave out.
    quiet: Any = {"logging_config": LoggingConfig(log_level="ERROR")}
    limit: Any = {"controller_failure_limit": workers.starts}
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={
            **vars(job),
            "config": job.config.model_dump(mode="json"),
            "board": board,
        },
        torch_config=TorchConfig(backend=None if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_size(workers), use_gpu=workers.gpu, resources_per_worker=workers.each
        ),
        run_config=RunConfig(
            name=_next_attempt(root),
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures, **limit),
            checkpoint_config=CheckpointConfig(num_to_keep=job.config.keep_checkpoints),
            **quiet,
        ),
    )
    try:
        result = trainer.fit()
    except SystemExit:
        # Ray Train answers ctrl-C itself, stops its workers, and leaves like this.
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise RayvecError(_explain(error, job.config, workers)) from error
    outcome: Outcome = getattr(result, "return_value", None) or {}
    if "error" not in outcome:
        job.folder.sweep(job.config.keep_checkpoints)
    return outcome


def _train_loop(told: dict[Any, Any]) -> Any:
    """What runs in each worker process."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rayvec").setLevel(logging.INFO)
    # torch renamed collectives that DeepSpeed still calls by their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    told = dict(told)
    board = told.pop("board")
    job = Job(**{**told, "config": TrainingConfig.parse(told["config"])})
    if job.device == "cuda":
        from ray.train.torch import get_device

        job = replace(job, device=str(get_device()))
    with _alive(board):
        return work(job, RayLink(job.folder, board, RunMetrics(job.output)))


@contextlib.contextmanager
def _alive(board: Any) -> Iterator[None]:
    """Signs of life to the driver, now and every few seconds."""
    done = threading.Event()

    def tell() -> None:
        board.live.remote()
        while not done.wait(ALIVE_S):
            board.live.remote()

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _next_attempt(root: str) -> str:
    names = [name for name in storage.list_names(root) if name.startswith("attempt-")]
    return f"attempt-{max((int(name.removeprefix('attempt-')) for name in names), default=0) + 1:03d}"


def _size(workers: Workers) -> Any:  # Train v2 takes two bounds, which its stubs leave out
    return workers.count if workers.least is None else (workers.least, workers.count)


def require_room(workers: Workers, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise UserError when nodes with these resources can never hold the group; Ray would wait for ever."""
    count, each = workers.fewest, workers.each
    for name, value in each.items():
        has = int(sum(node.get(name, 0) for node in nodes))
        if count * value > has:
            raise UserError(f"{count} workers need {count * value} {name}s and the cluster has {has}; lower workers")
    room = sum(min(int(node.get(name, 0) // value) for name, value in each.items()) for node in nodes)
    if room < count:
        raise UserError(
            f"the cluster's {len(nodes)} nodes hold {room} of {workers.told}, since a worker is on one node; lower "
            "cpus_per_worker or workers"
        )


def _explain(error: Any, config: TrainingConfig, workers: Workers) -> str:
    """One line about why workers failed: the first worker's own error; what to change when memory was the reason."""
    if type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        return (
            f"Ray found no room for {workers.told} in {workers.starts + 1} tries: others' work fills the cluster; run "
            "it again later, wait longer with wait_s, or lower workers"
        )
    failures = getattr(error, "worker_failures", {}) or {}
    first = next(iter(failures.values()), error)
    line = " ".join(str(first).strip().splitlines()[-1:]) or type(first).__name__
    if lacks_memory(str(first)):
        return f"{memory_advice(config)} ({line})"
    return f"training failed on {len(failures) or 'its'} worker(s): {line}"
