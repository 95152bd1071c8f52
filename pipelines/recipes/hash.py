"""The HashEncoder's recipes: the whole line without any weights."""

from __future__ import annotations

from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig


def embed() -> EmbedConfig:
    """Embed with hashed words: set source.path and output."""
    return EmbedConfig(encoder="hash")


def index() -> IndexConfig:
    """Index whatever the HashEncoder embedded: set embeddings and output."""
    return IndexConfig()
