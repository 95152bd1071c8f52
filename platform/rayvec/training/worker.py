"""One worker's part of a run: build the stage, go on from a checkpoint, loop, write checkpoints, save the result.

The same function runs alone in a process and as one of many under Ray Train; what differs comes in as a `Link`. Knows
stages, engines and the loop. Knows no Ray.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from rayvec import uris
from rayvec.errors import RayvecError, UserError, VerificationError
from rayvec.losses.gather import rank, world_size
from rayvec.modeling import manifest
from rayvec.training import checkpoints
from rayvec.training.card import write_card
from rayvec.training.checkpoints import CheckpointRecord
from rayvec.training.curves import MetricsLog
from rayvec.training.evaluation import Evaluator, evaluating
from rayvec.training.job import Job, Link
from rayvec.training.loop import Batch, DivergedError, Hook, Metrics, PlainEngine, Progress, train
from rayvec.training.run_folder import RunFolder
from rayvec.training.stages import STAGES, Pretrain, TrainingConfig

if TYPE_CHECKING:
    from rayvec.training.deepspeed import DeepSpeedEngine

    AnyEngine = PlainEngine | DeepSpeedEngine


Outcome = dict[str, Any]


def work(job: Job, link: Link) -> Outcome:
    """Run this worker's part. All workers call it; errors of ours come back in the outcome, the same on every rank.

    An error that is not ours (a lost machine, no memory) is raised: whoever started the workers may try again.
    """
    if job.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else peft's import of deepspeed looks for one, and warns
    run: _Run | None = None
    error: RayvecError | None = None
    started = time.monotonic()
    try:
        run = _Run.open(job, link)
    except RayvecError as caught:
        error = caught
    if failure := _agreed(error):
        return failure
    assert run is not None
    ready = time.monotonic()
    try:
        run.train()
    except RayvecError as caught:
        error = caught
    except _AgreedError as agreed:
        run.close(failed=True)
        return agreed.failure
    run.close(failed=error is not None)
    if failure := _agreed(error):
        failure["message"] += f"; the last whole checkpoint is of step {run.saved_step}"
        return failure
    try:
        run.save()
    except _AgreedError as agreed:
        return agreed.failure
    return run.outcome(startup=ready - started, training=time.monotonic() - ready)


class _AgreedError(Exception):
    """An error that all ranks know of already."""

    def __init__(self, failure: Outcome) -> None:
        super().__init__(failure["message"])
        self.failure = failure


def _together(act: Callable[[], None]) -> None:
    """Do something that may fail on one rank alone; raises _AgreedError on all of them, so that none waits for it."""
    error: RayvecError | None = None
    try:
        act()
    except RayvecError as caught:
        error = caught
    if failure := _agreed(error):
        raise _AgreedError(failure)


def _agreed(error: RayvecError | None) -> Outcome | None:
    """The first rank's error, if any rank has one: the same answer everywhere, so that none waits for another."""
    mine = None if error is None else {"error": type(error).__name__, "message": str(error)}
    told = not (isinstance(error, DivergedError) and error.elsewhere)
    everybody: list[Any] = [(told, mine)]
    if world_size() > 1:
        everybody = [None] * world_size()
        dist.all_gather_object(everybody, (told, mine))
    failures = sorted((failure for failure in everybody if failure[1]), key=lambda failure: not failure[0])
    return failures[0][1] if failures else None


@dataclass
class _Run:
    """A stage, its engine and where it stands. Also a loop hook: it writes the checkpoints."""

    job: Job
    link: Link
    module: Any
    engine: AnyEngine
    log: MetricsLog | None
    evaluator: Evaluator | None
    start_step: int
    saved_step: int
    tokens: int = 0
    #: Seconds that went into evaluation.
    measuring: float = 0.0
    latest: Metrics = field(default_factory=dict)

    @classmethod
    def open(cls, job: Job, link: Link) -> _Run:
        """Build the stage and its engine, and bring both to the checkpoint."""
        if job.threads:
            torch.set_num_threads(job.threads)
        torch.manual_seed(job.config.seed)  # a fresh LoRA is the same on every rank
        data = job.folder.pull("training/data", last="store.json")
        config = _with_dtype(job)
        module = _load(STAGES[config.stage.kind].module)(config, data, job.device)
        module.train()
        engine = _engine(job, module)
        step, history = 0, ""
        if (folder := _checkpoint(job, link)) is not None:
            found = checkpoints.load(folder, rank=rank(), world_size=world_size(), config=job.digest)
            step, history = found.step, found.metrics
            engine.restore(found.weights, found.optimizers)
        log = _open_log(job, link, history, step) if rank() == 0 else None
        if log is not None:
            for name, fact in module.facts.items():
                link.say(f"{name.replace('_', ' ')} {fact}")
            if folder is not None:
                link.say(f"going on from step {step}")
        return cls(job, link, module, engine, log, _evaluator(job), step, step)

    def train(self) -> None:
        """The steps that are left."""
        config = self.job.config
        hooks: list[Hook] = [self] if self.log is None else [self.log, self]
        if self.start_step == 0:
            self._evaluate(0)
        train(
            self.engine,
            self.batch_at,
            steps=config.steps,
            optimizer=config.optimizer,
            start_step=self.start_step,
            log_every=config.log_every,
            hooks=hooks,
            mean=mean_over_ranks,
        )

    def close(self, *, failed: bool) -> None:
        """End the log; where the run is remote, bring it there."""
        if self.log is not None:
            self.log.close(failed=failed)
            self._push_metrics()

    def batch_at(self, step: int) -> Sequence[Batch]:
        """This rank's batch; sets torch's random state by (seed, step, rank), so that dropout repeats on resume."""
        torch.manual_seed(int(np.random.SeedSequence((self.job.config.seed, step, rank())).generate_state(1)[0]))
        parts: Sequence[Batch] = self.module.batch_at(step)
        self.tokens += sum(part.tokens for part in parts)
        return parts

    def logged(self, progress: Progress) -> None:
        """Remember the latest numbers; rank 0 hands them on."""
        self.latest = progress.metrics
        if rank() == 0:
            self.link.logged(progress)

    def stepped(self, step: int) -> None:
        """Compare ranks, measure and write checkpoints when their time has come."""
        config = self.job.config
        if step % config.evaluate_every == 0 or step == config.steps:
            self._evaluate(step)
        if config.compare_ranks_every and step % config.compare_ranks_every == 0:
            require_equal_ranks(self.engine.weights(), step)
        if step % config.checkpoint_every == 0 or step == config.steps:
            self.link.commit(step, self.latest, lambda folder: _together(lambda: self._write(folder, step)))
            self.saved_step = step

    def _evaluate(self, step: int) -> None:
        """Measure the encoder as it is; on every rank, since all encode."""
        if self.evaluator is None:
            return
        before = time.monotonic()
        with evaluating(self.module) as encode:
            values = self.evaluator(encode)
        self.measuring += time.monotonic() - before
        if self.log is not None:
            self.log.evaluated(step, values)
            self._push_metrics()

    def _push_metrics(self) -> None:
        """Bring metrics.jsonl to a remote output. Checkpoints hold it too, so a store that refuses is only told."""
        try:
            self.job.folder.push("training/metrics.jsonl")
        except RayvecError as error:
            self.link.say(f"metrics.jsonl is not brought to {self.job.output}: {error}")

    def _write(self, folder: Path, step: int) -> None:
        record = CheckpointRecord(step=step, rank=rank(), world_size=world_size(), config=self.job.digest, files={})
        checkpoints.write(
            folder,
            record,
            weights=self.engine.weights(),
            optimizer=self.engine.optimizer_state(),
            metrics="" if self.log is None else self.log.history,
        )

    def save(self) -> None:
        """Write what the stage made into the output folder (rank 0)."""
        config = self.job.config
        training = {"config": config.model_dump(mode="json"), "steps": config.steps, **self.latest}
        folder = self.job.folder
        with self.engine.whole(frozen=_trains_all(config)):
            _together(lambda: self._save(folder, training) if rank() == 0 else None)

    def _save(self, folder: RunFolder, training: Mapping[str, Any]) -> None:
        self.module.save(folder.local, training)
        write_card(folder.local, training)
        _push_result(folder)

    def outcome(self, *, startup: float, training: float) -> Outcome:
        """Numbers for the report."""
        parameters = list(self.module.parameters())
        steps = self.job.config.steps - self.start_step
        training -= self.measuring
        return {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "resumed_from_step": self.start_step,
            "workers_at_end": world_size(),
            **self.module.facts,
            "startup_seconds": round(startup, 3),
            "training_seconds": round(training, 3),
            **({"evaluation_seconds": round(self.measuring, 3)} if self.measuring else {}),
            "seconds_per_step": round(training / steps, 4) if steps else 0.0,
            "tokens_per_second": round(self.tokens * world_size() / training, 1),
        }


def _engine(job: Job, module: torch.nn.Module) -> AnyEngine:
    if job.engine == "plain":
        return PlainEngine(module, job.config.optimizer)
    from rayvec.training.deepspeed import DeepSpeedEngine

    bf16 = job.config.dtype == "bfloat16" or (job.config.dtype == "auto" and job.device != "cpu")
    return DeepSpeedEngine(module, job.config.optimizer, job.settings, bf16=bf16)


def _trains_all(config: TrainingConfig) -> bool:
    return isinstance(config.stage, Pretrain) or config.stage.lora is None


def _with_dtype(job: Job) -> TrainingConfig:
    """Without LoRA, plain AdamW moves the weights themselves, and steps in bfloat16 would round to nothing."""
    config = job.config
    if job.engine == "deepspeed" or not _trains_all(config) or config.dtype == "float32":
        return config
    if config.dtype == "bfloat16":
        raise UserError(
            "dtype=bfloat16 trains all weights with DeepSpeed alone (it keeps float32 masters); set workers=1"
        )
    return config.replace(dtype="float32")


def _checkpoint(job: Job, link: Link) -> Path | None:
    """Where this run goes on from: its own newest checkpoint, else the one it was told to start from."""
    own = link.resume_from()
    if own is not None or not job.resume_from:
        return own
    given = job.folder.newest_checkpoint(job.resume_from)
    if given is None:
        raise VerificationError(f"resume_from={job.resume_from} holds no whole checkpoint; give another one")
    return given


def _open_log(job: Job, link: Link, history: str, step: int) -> MetricsLog:
    config = job.config
    return MetricsLog(
        job.folder.local / "training",
        history,
        step,
        trackers=config.trackers,
        run_name=uris.name_of(job.output),
        config=config.model_dump(mode="json"),
        say=link.say,
    )


def _evaluator(job: Job) -> Evaluator | None:
    if not job.config.evaluation:
        return None
    evaluator: Evaluator = _load(job.evaluator)(job.config.evaluation, str(job.folder.local / "training" / "cache"))
    return evaluator


def _push_result(folder: RunFolder) -> None:
    """Bring what the stage made to a remote output; rayvec.json, which stands for the whole, goes last."""
    if not folder.remote:
        return
    made = [path.name for path in sorted(folder.local.iterdir()) if path.name not in (manifest.FILE, "training")]
    for name in [name for name in made if not name.startswith(".")]:
        folder.push(name)
    if (folder.local / manifest.FILE).exists():
        folder.push(manifest.FILE)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def mean_over_ranks(values: Metrics) -> Metrics:
    """The mean of each number over all ranks, in float64."""
    if world_size() == 1:
        return values
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    return dict(zip(values, (packed / world_size()).tolist(), strict=True))


def require_equal_ranks(weights: Mapping[str, torch.Tensor], step: int) -> None:
    """Raise RayvecError unless all ranks' weights are equal to the bit."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    everybody: list[Any] = [digest.hexdigest()]
    if world_size() > 1:
        everybody = [None] * world_size()
        dist.all_gather_object(everybody, digest.hexdigest())
    if len(set(everybody)) > 1:
        raise RayvecError(f"ranks differ after step {step}: {everybody}; gradients were not averaged. Report this")
