"""The one training loop of every stage: batches in, losses out, checkpoints on the way.

Knows steps, rates, metrics and hooks. Knows no stage, no DeepSpeed and no Ray: those come in as an `Engine`, a
function of batches and a list of hooks, so the same loop pretrains on a laptop and fine-tunes on a cluster.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Moves a model by the losses of a batch's parts: plain torch, or DeepSpeed."""

    def backward(self, parts: Sequence[Batch]) -> tuple[float, Metrics]:
        """Forward and backward of each part in turn; the losses and metrics of this rank, summed over its parts."""
        ...

    def step(self, rate: float) -> float:
        """Average the gradients over ranks, clip, step; returns their norm before clipping."""
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
    """The loss or its gradient is not finite any more. elsewhere: on another rank than this one."""

    def __init__(self, message: str, *, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


@dataclass
class Summed:
    """The loss and metrics of a batch, summed over its parts."""

    loss: float = 0.0
    metrics: Metrics = field(default_factory=dict)

    def add(self, loss: torch.Tensor, metrics: Metrics) -> None:
        """One part more."""
        self.loss += float(loss.detach())
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value


class PlainEngine:
    """torch's AdamW; where several ranks train, their gradients are averaged after the backward."""

    def __init__(self, model: torch.nn.Module, config: OptimizerConfig) -> None:
        self.module = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_adamw(self.parameters, config)
        self.clip_norm = config.clip_norm

    def backward(self, parts: Sequence[Batch]) -> tuple[float, Metrics]:
        """Forward and backward of each part in turn; the losses and metrics of this rank, summed over its parts."""
        total = Summed()
        for part in parts:
            loss, metrics = self.module(part)
            loss.backward()
            total.add(loss, metrics)
        return total.loss, total.metrics

    def step(self, rate: float) -> float:
        """Average the gradients over ranks, clip, step; returns their norm before clipping."""
        import torch

        from rayvec.losses.gather import average_gradients

        average_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable weights by name."""
        named = self.module.named_parameters()
        return {name: p.detach().cpu().clone() for name, p in named if p.requires_grad}

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """AdamW's moments, by place."""
        return {
            f"{place}.{name}": value.detach().cpu().clone()
            for place, parameter in enumerate(self.parameters)
            for name, value in self.optimizer.state.get(parameter, {}).items()
        }

    def restore(self, weights: Mapping[str, torch.Tensor], optimizers: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Go on from what `weights` and `optimizer_state` gave, to the bit; every rank's state is the same here."""
        named = dict(self.module.named_parameters())
        for name, value in weights.items():
            named[name].data.copy_(value)
        for key, value in optimizers[0].items():
            place, _, name = key.partition(".")
            parameter = self.parameters[int(place)]
            self.optimizer.state[parameter][name] = value.clone().to("cpu" if name == "step" else parameter.device)

    @contextlib.contextmanager
    def whole(self, *, frozen: bool = False) -> Iterator[None]:
        """The weights are whole on every rank here; ZeRO 3 has to bring them together."""
        del frozen
        yield


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
    batch_at: Callable[[int], Sequence[Batch]],
    *,
    steps: int,
    optimizer: OptimizerConfig,
    start_step: int = 0,
    log_every: int = 10,
    hooks: Sequence[Hook] = (),
    mean: Callable[[Metrics], Metrics] = dict,
) -> None:
    """Run steps `start_step` to `steps`.

    batch_at: the batch of a step, in parts; a pure function of the step, so that a resumed run sees the same batches.
    mean: this rank's numbers to their mean over all ranks, so that every rank sees the same and stops at the same step.

    Raises DivergedError when the loss is NaN or infinite; it names the step and the batch's documents.
    """
    window = _Window()
    for step in range(start_step, steps):
        parts = batch_at(step)
        loss, metrics = engine.backward(parts)
        metrics = mean({"loss": loss, **metrics})
        _require_finite("loss", loss, metrics["loss"], step, parts)
        rate = learning_rate(optimizer, step, steps)
        norm = engine.step(rate)
        _require_finite("gradient norm", norm, norm, step, parts)
        window.add({**metrics, "learning_rate": rate, "gradient_norm": norm}, sum(part.tokens for part in parts))
        if (step + 1) % log_every == 0 or step + 1 == steps:
            progress = window.progress(step + 1, steps)
            window = _Window()
            for hook in hooks:
                hook.logged(progress)
        before = time.monotonic()
        for hook in hooks:
            hook.stepped(step + 1)
        window.started += time.monotonic() - before  # measuring and checkpoints are not what tokens/s is about


def _require_finite(name: str, own: float, everybodys: float, step: int, parts: Sequence[Batch]) -> None:
    """Raise DivergedError unless the mean over all ranks is finite; `own` tells whether it went wrong here."""
    if math.isfinite(everybodys):
        return
    ids = [id_ for part in parts for id_ in part.document_ids]
    names = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
    raise DivergedError(
        f"{name} is {own} at step {step}; the batch holds {names}. Lower the learning rate, or look at these documents",
        elsewhere=math.isfinite(own),
    )
