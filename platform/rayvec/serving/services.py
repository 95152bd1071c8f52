"""What the gateway asks of the parts that do the work, wherever they run, and what they answer: values, protocols.

Shapes: B texts, Q queries, D dimensions, K hits a query.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rayvec.serving.batcher import Batched
from rayvec.serving.listing import Described
from rayvec.serving.schemas import Hit, Mode
from rayvec.serving.search import Options

if TYPE_CHECKING:
    from rayvec.indexing.maps import Map


@dataclass(frozen=True)
class Encoded:
    """Vectors float32 [B, D] of one request, the tokens that were read, and which texts were cut.

    fingerprint: of the encoder, in short.
    """

    vectors_BD: np.ndarray
    n_tokens: int
    truncated: list[bool]
    fingerprint: str
    batch: Batched | None = None


@dataclass(frozen=True)
class Found:
    """The hits of each query, all from one version of the index.

    mode: the one that was searched by. coverage: the share of the vectors that were searched; missing: the parts that
    hold the others.
    """

    hits: list[list[Hit]]
    version: str
    mode: Mode
    coverage: float = 1.0
    missing: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Fetched:
    """A document as one version of the index has it: fields of `schemas.DocumentAnswer`."""

    version: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class EncoderFacts:
    """What an encoder part serves."""

    fingerprint: str
    dim: int
    max_length: int


@dataclass(frozen=True)
class IndexFacts:
    """What an index part serves."""

    version: str
    count: int
    modes: list[Mode]
    #: A newer version that is not served, and why.
    refused: str | None = None
    #: Parts of the vectors that did not answer a moment ago.
    missing: list[int] = field(default_factory=list)
    #: Of a few stored vectors, the share of their true nearest ten that a search finds; None before the first look.
    recall: float | None = None


@dataclass(frozen=True)
class Reached:
    """Whether a copy of the index part serves a version, or a later one."""

    replica: str
    there: bool


class EncoderService(Protocol):
    """What the gateway asks of a QueryEncoder, here or in another process."""

    async def encode(self, texts: list[str], instruction: str | None) -> Encoded:
        """Vectors of texts."""

    async def encode_ids(self, ids: list[list[int]]) -> Encoded:
        """Vectors of texts that are tokenized already."""

    async def facts(self) -> EncoderFacts:
        """What is loaded."""


class RetrieverService(Protocol):
    """What the gateway asks of a Retriever, here or in another process."""

    async def search(
        self, queries: list[str], vectors_QD: np.ndarray | None, options: Options, fingerprint: str | None = None
    ) -> Found:
        """The hits of each query. fingerprint: of the encoder that the vectors are of, in short."""

    async def rerank(self, query: str, texts: list[str]) -> list[float]:
        """One score a text."""

    async def document(self, id_: str) -> Fetched:
        """One document."""

    async def facts(self) -> IndexFacts:
        """What is loaded."""

    async def reach(self, version: str) -> Reached:
        """Serve a version, or a later one, as soon as it can be."""

    async def describe(self) -> Described:
        """What there is to know of the index."""

    async def map(self) -> Map:
        """The map of the index."""
