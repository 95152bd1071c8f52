"""Optimizer and learning-rate schedule. Knows parameters and step numbers; knows no stage and no data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rayvec.config import Config

if TYPE_CHECKING:
    import torch

Schedule = Literal["constant", "linear", "cosine"]


class OptimizerConfig(Config):
    """AdamW and its schedule. The schedule spans the real number of steps (the reference's spans three epochs)."""

    learning_rate: float = Field(5e-5, gt=0)
    schedule: Schedule = "linear"
    warmup_steps: int = Field(0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate at a step (0-based) of a run of `steps`: linear warm-up, then the schedule down to zero.

    >>> config = OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_steps=2)
    >>> [learning_rate(config, step, steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.learning_rate * factor


def build_adamw(parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors (norms, biases) do not."""
    import torch

    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
    )
