"""Llama-3.1-8B-Instruct: the published stages. Each takes the output of the one before as its start."""

from __future__ import annotations

from pipelines import published
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.train import TrainConfig

BASE = "meta-llama/Llama-3.1-8B-Instruct"


def mntp() -> TrainConfig:
    """MNTP from meta-llama/Llama-3.1-8B-Instruct."""
    return published.mntp(BASE)


def simcse() -> TrainConfig:
    """Unsupervised SimCSE from the output of mntp."""
    return published.simcse()


def supervised() -> TrainConfig:
    """Supervised contrastive learning from the output of mntp (the paper's best) or simcse."""
    return published.supervised()


def embed() -> EmbedConfig:
    """Embed on GPUs with what a stage made: set encoder to its output, source.path and output."""
    return EmbedConfig(encoder="", dtype="float16", num_gpus=1)


def index() -> IndexConfig:
    """Index what embed made, 4096 dimensions reduced to 1024 by PCA: set embeddings and output."""
    return IndexConfig(dimensions=1024)
