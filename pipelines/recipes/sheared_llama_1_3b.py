"""Sheared-LLaMA-1.3B: the published stages. Each takes the output of the one before as its start."""

from __future__ import annotations

from pipelines import published
from pipelines.train import TrainConfig

BASE = "princeton-nlp/Sheared-LLaMA-1.3B"


def mntp() -> TrainConfig:
    """MNTP from princeton-nlp/Sheared-LLaMA-1.3B."""
    return published.mntp(BASE)


def simcse() -> TrainConfig:
    """Unsupervised SimCSE from the output of mntp."""
    return published.simcse(batch_size=32)


def supervised() -> TrainConfig:
    """Supervised contrastive learning from the output of mntp (the paper's best) or simcse."""
    return published.supervised()
