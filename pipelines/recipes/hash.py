"""The HashEncoder's recipes: the whole line without any weights."""

from __future__ import annotations

from pipelines.advise import AdviseConfig
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.measure import MeasureConfig
from rayvec.serving.config import ServeConfig


def embed() -> EmbedConfig:
    """Embed with hashed words: set source.path and output."""
    return EmbedConfig(encoder="hash")


def index() -> IndexConfig:
    """Index whatever the HashEncoder embedded: set embeddings and output."""
    return IndexConfig()


def advise() -> AdviseConfig:
    """Which dimensions and index suit what the HashEncoder embedded: set embeddings and output."""
    return AdviseConfig()


def serve() -> ServeConfig:
    """Serve an index with the encoder that its manifest names: set index."""
    return ServeConfig()


def measure() -> MeasureConfig:
    """Measure what hashed words find, beside BM25: set data and output."""
    return MeasureConfig(encoder="hash")
