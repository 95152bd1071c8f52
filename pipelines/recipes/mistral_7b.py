"""Mistral-7B-Instruct-v0.2: the published stages. Each takes the output of the one before as its start."""

from __future__ import annotations

from pipelines import published
from pipelines.train import TrainConfig

BASE = "mistralai/Mistral-7B-Instruct-v0.2"


def mntp() -> TrainConfig:
    """MNTP from mistralai/Mistral-7B-Instruct-v0.2."""
    # The published run saw full attention: sliding windows, where a version has them, are opened.
    return published.mntp(BASE, probability=0.8, masking="all").replace(attention_window="full")


def simcse() -> TrainConfig:
    """Unsupervised SimCSE from the output of mntp."""
    return published.simcse()


def supervised() -> TrainConfig:
    """Supervised contrastive learning from the output of mntp (the paper's best) or simcse."""
    return published.supervised()
