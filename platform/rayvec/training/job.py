"""What a worker is told, and its line to whoever started it. Knows folders and settings. Knows no torch and no Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rayvec import storage
from rayvec.training import checkpoints
from rayvec.training.loop import Metrics, Progress
from rayvec.training.run_folder import RunFolder
from rayvec.training.stages import TrainingConfig

LOG = logging.getLogger("rayvec.training")
#: Settings that move no weight: they may change when a run is gone on with.
HARMLESS = frozenset(
    {
        "gradient_checkpointing",  # computes the same again, with the same dropout
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "compare_ranks_every",
        "evaluation",
        "evaluate_every",
        "trackers",
    }
)


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told; plain data."""

    config: TrainingConfig
    #: The run's folder: an absolute path that all workers see, or a URI.
    output: str
    engine: Literal["plain", "deepspeed"] = "plain"
    #: DeepSpeed's, such as infra/deepspeed/zero1.json.
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    #: CPU threads of this worker; 0 leaves torch's choice.
    threads: int = 0
    #: "module:function" that makes an `evaluation.Evaluator` of the configuration's sets and a cache folder.
    evaluator: str = ""
    #: A checkpoint, or a folder of them, to start from when this run has none of its own.
    resume_from: str = ""
    #: Name of the run, where it is at a URI.
    run: str = ""
    #: What it starts from and trains on, as hashes; a checkpoint of other weights or examples is of another run.
    inputs: str = ""

    @property
    def folder(self) -> RunFolder:
        """The run's folder on this machine and elsewhere."""
        return RunFolder(self.output, self.run)

    @property
    def digest(self) -> str:
        """What a checkpoint must agree on with the run that goes on from it."""
        values = {name: value for name, value in self.config.model_dump(mode="json").items() if name not in HARMLESS}
        values.pop("start")  # in `inputs`, by what it is
        stage = self.settings.get("zero_optimization", {}).get("stage", 0)
        return storage.sha256_bytes(
            storage.to_json({**values, "engine": self.engine, "zero": stage, "inputs": self.inputs})
        )[:16]


class Link(Protocol):
    """A worker's line to whoever started it: where to go on from, and where checkpoints go."""

    def resume_from(self) -> Path | None:
        """A checkpoint's folder, or None to start from the beginning."""

    def commit(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint: `write` fills a folder. Every rank calls it equally often."""

    def say(self, line: str) -> None:
        """Show a person a line."""

    def logged(self, progress: Progress) -> None:
        """Hand on the numbers of a logged line; rank 0 calls it."""


@dataclass
class LocalLink:
    """Checkpoints of one process, written by itself."""

    folder: RunFolder
    keep: int

    def resume_from(self) -> Path | None:
        """The newest whole one."""
        return self.folder.newest_checkpoint()

    def commit(self, step: int, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Write it under a temporary name, rename it, then drop the oldest."""
        del metrics
        root = self.folder.local / "training" / "checkpoints"
        name = f"step-{step:08d}"
        with storage.committed_folder(root / name) as folder:
            write(folder)
        self.folder.push(f"training/checkpoints/{name}", last=checkpoints.record_name(0))
        for old in sorted(root.glob("step-*"))[: -self.keep]:
            self.folder.clear(f"training/checkpoints/{old.name}")

    def say(self, line: str) -> None:
        """Log it."""
        LOG.info(line)

    def logged(self, progress: Progress) -> None:
        """The run's own log has them, and nobody else asks one process for them."""
