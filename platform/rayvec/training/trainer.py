"""Ray Train around the workers: a group of processes, their checkpoints, their failures.

Every start of a run is an attempt with a name of its own, which goes on from the newest checkpoint whose checksums
match; so Ray's own snapshot of a run, which a kill may tear, is never needed. Knows Ray. Knows no stage and no model.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayvec.config import Config
from rayvec.errors import RayvecError, UserError, VerificationError
from rayvec.training import checkpoints
from rayvec.training.loop import Metrics
from rayvec.training.stages import TrainingConfig
from rayvec.training.worker import Job, Outcome, work


class Workers(Config):
    """The group of worker processes."""

    count: int = 1
    cpus: int = 1
    gpu: bool = False
    #: Starts again after a lost worker, from the last checkpoint (Ray's own default is never).
    max_failures: int = 2


@dataclass
class RayLink:
    """A worker's line to Ray Train."""

    root: Path

    def resume_from(self) -> Path | None:
        """The newest whole checkpoint of any attempt; the same on every rank, since nobody writes while a group starts.

        Ray forgets a checkpoint that was reported in the two seconds before a worker died. Its files are there.
        """
        return checkpoints.newest(self.root)

    def commit(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Report a checkpoint: every rank writes its own files, Ray puts them into one folder. A barrier."""
        from ray import train

        with tempfile.TemporaryDirectory(prefix="rayvec-checkpoint-") as folder:
            write(Path(folder))
            train.report({"step": step, **metrics}, checkpoint=train.Checkpoint.from_directory(folder))


def run(job: Job, workers: Workers) -> Outcome:
    """Run a job on a group of Ray workers; Ray must be up. Raises UserError; RayvecError when workers keep failing."""
    # Busy machines need longer than Ray's one minute to start processes that import torch.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    root = job.output / "training" / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    quiet: Any = {"logging_config": LoggingConfig(log_level="ERROR")}  # Train v2 only, which its stubs leave out
    resources = {"CPU": workers.cpus, **({"GPU": 1} if workers.gpu else {})}
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={
            **vars(job),
            "config": job.config.model_dump(mode="json"),
            "output": str(job.output),
        },
        torch_config=TorchConfig(backend=None if workers.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=_next_attempt(root),
            storage_path=str(root),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.config.keep_checkpoints),
            **quiet,
        ),
    )
    _require_room(workers)
    try:
        result = trainer.fit()
    except SystemExit:
        # Ray Train answers ctrl-C itself, stops its workers, and leaves like this.
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise RayvecError(_explain(error)) from error
    outcome: Outcome = getattr(result, "return_value", None) or {}
    if "error" not in outcome:
        _sweep(root, job.config.keep_checkpoints)
    return outcome


def _train_loop(told: dict[Any, Any]) -> Any:
    """What runs in each worker process."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rayvec").setLevel(logging.INFO)
    # torch renamed collectives that DeepSpeed still calls by their old names.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    job = Job(**{**told, "config": TrainingConfig.parse(told["config"]), "output": Path(told["output"])})
    if job.device == "cuda":
        from ray.train.torch import get_device

        job = replace(job, device=str(get_device()))
    return work(job, RayLink(job.output / "training" / "checkpoints"))


def _sweep(root: Path, keep: int) -> None:
    """Remove torn checkpoints, those that Ray lost sight of, and all but the newest."""
    whole: list[tuple[int, Path]] = []
    for folder in [path for path in root.glob("attempt-*/*") if path.is_dir()]:
        try:
            whole.append((checkpoints.verify(folder).step, folder))
        except VerificationError:
            shutil.rmtree(folder)
    for _, folder in sorted(whole)[:-keep]:
        shutil.rmtree(folder)


def _next_attempt(root: Path) -> str:
    numbers = [int(path.name.removeprefix("attempt-")) for path in root.glob("attempt-*")]
    return f"attempt-{max(numbers, default=0) + 1:03d}"


def _require_room(workers: Workers) -> None:
    """Raise UserError when the cluster can never hold the group; Ray would wait for ever."""
    import ray

    total = ray.cluster_resources()
    for name, wanted in (("CPU", workers.count * workers.cpus), ("GPU", workers.count * int(workers.gpu))):
        if wanted > total.get(name, 0):
            has = int(total.get(name, 0))
            raise UserError(f"{workers.count} workers need {wanted} {name}s and the cluster has {has}; lower workers")


def _explain(error: Any) -> str:
    """One line about why workers failed: the first worker's own error; what to change when memory was the reason."""
    failures = getattr(error, "worker_failures", {}) or {}
    first = next(iter(failures.values()), error)
    line = " ".join(str(first).strip().splitlines()[-1:]) or type(first).__name__
    if "out of memory" in str(first).lower():
        return f"out of memory: lower batch_size or max_length, or set gradient_checkpointing=true ({line})"
    return f"training failed on {len(failures) or 'its'} worker(s): {line}"
