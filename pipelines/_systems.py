"""Systems to measure: an encoder read in some way, its echo, BM25, and both together; each by its name.

What the paper compares is one encoder folder after some of its stages, with one attention and pooling or another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.indexing.hybrid import DENSE_WEIGHT
from rayvec.modeling.manifest import PoolingName

if TYPE_CHECKING:
    from rayvec.modeling.encoder import Encoder


class SystemConfig(Config):
    """One row of a table."""

    name: str = Field(min_length=1)
    #: encoder: texts read once; echo: read twice, the second copy pooled; lexical: BM25; hybrid: BM25 and `dense`.
    kind: Literal["encoder", "echo", "lexical", "hybrid"] = "encoder"
    #: "tiny", "hash", a folder or URI of an encoder (or encoder-only model), a Hugging Face id; else the table's.
    encoder: str = ""
    #: After how many of the encoder's stages (adapters in merge order): 0 is its base. By default all.
    stages: int | None = Field(None, ge=0)
    #: By default the encoder's own.
    attention: Literal["bidirectional", "causal", "native"] | None = None
    pooling: PoolingName | None = None
    max_length: PositiveInt | None = None
    #: Before queries, and before all texts where the sides of a task are alike.
    instruction: str | None = None
    #: hybrid: the system of the table that gives the dense side, and what it counts where BM25 counts 1.
    dense: str = ""
    dense_weight: float = Field(DENSE_WEIGHT, ge=0)

    @property
    def has_vectors(self) -> bool:
        """Whether it makes vectors of its own."""
        return self.kind in ("encoder", "echo")


def open_system(config: SystemConfig, default: str, dtype: str = "auto") -> Encoder:
    """Load the encoder of a system that has vectors. Raises UserError."""
    from rayvec.modeling.echo import EchoEncoder
    from rayvec.modeling.encoder import TextEncoder, load_encoder
    from rayvec.modeling.folder import open_encoder

    reference = config.encoder or default
    changes = _changes(config)
    if reference == "hash" or reference.startswith("hash:"):
        if changes or config.stages is not None or config.kind == "echo":
            raise UserError(f"{config.name}: a HashEncoder has no stages, attention, pooling or echo; leave them out")
        return load_encoder(reference)
    folder = open_encoder(reference)
    if config.stages is not None:
        folder = folder.after(config.stages)
    if "max_length" in changes:
        folder = folder.reading(changes.pop("max_length"))
    folder = folder.with_settings(**changes) if changes else folder
    encoder = TextEncoder.from_folder(folder, dtype=dtype)
    return EchoEncoder(encoder) if config.kind == "echo" else encoder


def anywhere(config: SystemConfig) -> SystemConfig:
    """The same system, found by workers too, which run in folders of their own."""
    from rayvec.modeling.references import canonical

    return config.replace(encoder=canonical(config.encoder)) if config.encoder else config


def _changes(config: SystemConfig) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in ("attention", "pooling", "max_length")}
    return {name: value for name, value in values.items() if value is not None}


def require_systems(systems: tuple[SystemConfig, ...]) -> None:
    """Raise UserError unless names differ and each hybrid's dense side is a system with vectors."""
    names = [system.name for system in systems]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"systems: {repeated[0]!r} stands twice; give each its own name")
    dense = [system.name for system in systems if system.has_vectors]
    for system in systems:
        if system.kind == "hybrid" and system.dense not in dense:
            raise UserError(f"systems: {system.name} needs dense=NAME, one of {', '.join(dense) or 'none'}")
