"""Ray Train around the workers: a group of processes, their checkpoints, their failures.

Every start of a run is an attempt with a name of its own, which goes on from the newest checkpoint whose checksums
match; so Ray's own snapshot of a run, which a kill may tear, is never needed. Knows Ray. Knows no stage and no model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
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


class Workers(Config):
    """The group of worker processes."""

    count: int = 1
    #: The group may shrink to so many when machines are lost, and grows again when they come back; None: never.
    least: int | None = None
    cpus: int = 1
    gpu: bool = False
    #: Starts again after a lost worker, from the last checkpoint (Ray's own default is never).
    max_failures: int = 2


class Board:
    """What rank 0 says, for the driver to show; an actor, since the two may be on different machines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

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
def _board() -> Iterator[Any]:
    """A board whose lines are shown as they come: Ray's own forwarding would bring its workers' noise along."""
    import ray

    board: Any = ray.remote(num_cpus=0)(Board).remote()
    done = threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = done.wait(0.5)
            with contextlib.suppress(ray.exceptions.RayError):
                for line in ray.get(board.take.remote()):
                    LOG.info(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        done.set()
        thread.join(timeout=10)
        ray.kill(board)


def run(job: Job, workers: Workers) -> Outcome:
    """Run a job on a group of Ray workers; Ray must be up. Raises UserError; RayvecError when workers keep failing."""
    # Busy machines need longer than Ray's one minute to start processes that import torch.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    _require_room(workers)
    with _board() as board:
        return _run(job, workers, board)


def _run(job: Job, workers: Workers, board: Any) -> Outcome:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    root = job.folder.checkpoints
    storage.make_folder(root)
    filesystem, path = storage.filesystem(root)
    quiet: Any = {"logging_config": LoggingConfig(log_level="ERROR")}  # Train v2 only, which its stubs leave out
    resources = {"CPU": workers.cpus, **({"GPU": 1} if workers.gpu else {})}
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={
            **vars(job),
            "config": job.config.model_dump(mode="json"),
            "board": board,
        },
        torch_config=TorchConfig(backend=None if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=_size(workers), use_gpu=workers.gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=_next_attempt(root),
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
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
        raise RayvecError(_explain(error, job.config)) from error
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
    return work(job, RayLink(job.folder, board, RunMetrics(job.output)))


def _next_attempt(root: str) -> str:
    names = [name for name in storage.list_names(root) if name.startswith("attempt-")]
    return f"attempt-{max((int(name.removeprefix('attempt-')) for name in names), default=0) + 1:03d}"


def _size(workers: Workers) -> Any:  # Train v2 takes two bounds, which its stubs leave out
    return workers.count if workers.least is None else (workers.least, workers.count)


def _require_room(workers: Workers) -> None:
    """Raise UserError when the cluster can never hold the group; Ray would wait for ever."""
    import ray

    total, count = ray.cluster_resources(), workers.count if workers.least is None else workers.least
    for name, wanted in (("CPU", count * workers.cpus), ("GPU", count * int(workers.gpu))):
        if wanted > total.get(name, 0):
            has = int(total.get(name, 0))
            raise UserError(f"{count} workers need {wanted} {name}s and the cluster has {has}; lower workers")


def _explain(error: Any, config: TrainingConfig) -> str:
    """One line about why workers failed: the first worker's own error; what to change when memory was the reason."""
    failures = getattr(error, "worker_failures", {}) or {}
    first = next(iter(failures.values()), error)
    line = " ".join(str(first).strip().splitlines()[-1:]) or type(first).__name__
    if lacks_memory(str(first)):
        return f"{memory_advice(config)} ({line})"
    return f"training failed on {len(failures) or 'its'} worker(s): {line}"
