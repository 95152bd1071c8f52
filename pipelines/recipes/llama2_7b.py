"""Llama-2-7B-chat: the published stages. Each takes the output of the one before as its start."""

from __future__ import annotations

from pipelines import published
from pipelines.train import TrainConfig

BASE = "meta-llama/Llama-2-7b-chat-hf"


def mntp() -> TrainConfig:
    """MNTP from meta-llama/Llama-2-7b-chat-hf."""
    return published.mntp(BASE)


def simcse() -> TrainConfig:
    """Unsupervised SimCSE from the output of mntp."""
    return published.simcse()


def supervised() -> TrainConfig:
    """Supervised contrastive learning from the output of mntp (the paper's best) or simcse."""
    return published.supervised()
