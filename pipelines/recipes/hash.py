"""The HashEncoder's recipes: the whole line without any weights."""

from __future__ import annotations

from pipelines._advise_config import AdviseConfig
from pipelines.compact import CompactConfig
from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.llm2vec import LineConfig
from pipelines.measure import MeasureConfig
from pipelines.update import UpdateConfig
from rayvec.serving.config import ServeConfig


def embed() -> EmbedConfig:
    """Embed with hashed words: set source.path and output."""
    return EmbedConfig(encoder="hash")


def index() -> IndexConfig:
    """Index whatever the HashEncoder embedded: set embeddings and output."""
    return IndexConfig()


def update() -> UpdateConfig:
    """Put new embeddings into an index and take ids out of it: set index, and embeddings or delete."""
    return UpdateConfig()


def compact() -> CompactConfig:
    """Build an updated index anew as one segment: set index."""
    return CompactConfig()


def advise() -> AdviseConfig:
    """Which dimensions and index suit what the HashEncoder embedded: set embeddings and output."""
    return AdviseConfig()


def serve() -> ServeConfig:
    """Serve an index with the encoder that its manifest names: set index."""
    return ServeConfig()


def measure() -> MeasureConfig:
    """Measure what hashed words find, beside BM25: set data and output."""
    return MeasureConfig(encoder="hash")


def line() -> LineConfig:
    """Texts to a served index, untrained: set corpus.path and output."""
    return LineConfig(embed=embed(), index=index(), serve=serve())
