"""The one training loop of every stage: batches in, losses out, checkpoints on the way.

Knows steps, rates, metrics and hooks. Knows no stage, no DeepSpeed and no Ray: those come in as an `Engine`, a loss
function and a list of hooks, so the same loop pretrains on a laptop and fine-tunes on a cluster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rayvec.errors import RayvecError
from rayvec.training.optimizers import OptimizerConfig, build_adamw, learning_rate

if TYPE_CHECKING:
    import torch

Metrics = dict[str, float]


class Batch(Protocol):
    """What a stage's collator gives: how many real tokens it holds, and which documents it came from."""

    tokens: int
    document_ids: Sequence[str]


class Engine(Protocol):
    """Moves a model by a loss: plain torch, or DeepSpeed."""

    def update(self, loss: torch.Tensor, rate: float) -> float:
        """Backward, clip, step; returns the gradient norm before clipping."""
        ...


@dataclass
class Progress:
    """One logged line: everything since the previous one."""

    step: int
    steps: int
    metrics: Metrics
    tokens_per_second: float
    seconds_left: float

    def line(self) -> str:
        """As a person reads it."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        speed = f"{self.tokens_per_second:,.0f} tokens/s  {self.seconds_left:.0f} s left"
        return f"step {self.step}/{self.steps}  {shown}  {speed}"


class Hook(Protocol):
    """Called by the loop: `logged` every `log_every` steps, `stepped` after each step (checkpoints, evaluation)."""

    def logged(self, progress: Progress) -> None:
        """A line was logged."""
        ...

    def stepped(self, step: int) -> None:
        """A step is done; `step` of them in all."""
        ...


class DivergedError(RayvecError):
    """The loss is not finite any more."""


class PlainEngine:
    """AdamW on one process."""

    def __init__(self, model: torch.nn.Module, config: OptimizerConfig) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_adamw(self.parameters, config)
        self.clip_norm = config.clip_norm

    def update(self, loss: torch.Tensor, rate: float) -> float:
        """Backward, clip, step; returns the gradient norm before clipping."""
        import torch

        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


@dataclass
class _Window:
    """Sums since the last logged line."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    tokens: int = 0
    sums: Metrics = field(default_factory=dict)

    def add(self, metrics: Metrics, tokens: int) -> None:
        self.steps += 1
        self.tokens += tokens
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def progress(self, step: int, steps: int) -> Progress:
        seconds = max(time.monotonic() - self.started, 1e-9)
        means = {name: total / self.steps for name, total in self.sums.items()}
        return Progress(step, steps, means, self.tokens / seconds, seconds / self.steps * (steps - step))


def train(
    engine: Engine,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[Batch], tuple[torch.Tensor, Metrics]],
    *,
    steps: int,
    optimizer: OptimizerConfig,
    start_step: int = 0,
    log_every: int = 10,
    hooks: Sequence[Hook] = (),
) -> None:
    """Run steps `start_step` to `steps`.

    batch_at: the batch of a step; a pure function of the step, so that a resumed run sees the same batches.
    loss_of: the loss of a batch (a scalar tensor) and what else to log.

    Raises DivergedError when the loss is NaN or infinite; it names the step and the batch's documents.
    """
    window = _Window()
    for step in range(start_step, steps):
        batch = batch_at(step)
        loss, metrics = loss_of(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            names = ", ".join(list(batch.document_ids)[:20])
            raise DivergedError(f"loss is {value} at step {step}; the batch holds {names}. Lower the learning rate")
        rate = learning_rate(optimizer, step, steps)
        norm = engine.update(loss, rate)
        window.add({"loss": value, **metrics, "learning_rate": rate, "gradient_norm": norm}, batch.tokens)
        if (step + 1) % log_every == 0 or step + 1 == steps:
            progress = window.progress(step + 1, steps)
            window = _Window()
            for hook in hooks:
                hook.logged(progress)
        for hook in hooks:
            hook.stepped(step + 1)
