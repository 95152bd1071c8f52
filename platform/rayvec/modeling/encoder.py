"""Encoders: texts in, vectors out. The Protocol that every stage asks for, and the loader by reference.

Importing this module loads no torch; a TextEncoder loads it when it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.storage import Fingerprint


@runtime_checkable
class Tokenizing(Protocol):
    """The CPU side of an encoder: tokens from texts, no weights."""

    max_length: int

    @property
    def fingerprint(self) -> Fingerprint:
        """What makes the vectors; see storage.Fingerprint."""

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """Token ids and pooled spans, one row a text, cut to `max_length` tokens."""


@runtime_checkable
class Encoder(Tokenizing, Protocol):
    """Texts to vectors. Equal fingerprints mean equal vectors."""

    dim: int

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        """Vectors float32 [n, dim] in the order of the rows, whatever batches are made inside."""

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """`encode_tokens(tokenize(texts, instruction))`."""


def load_encoder(reference: str) -> Encoder:
    """An encoder by reference: "hash", "hash:64", "tiny" (the embedded one), a folder, a URI or a Hugging Face id."""
    if reference == "hash" or reference.startswith("hash:"):
        return HashEncoder.parse(reference)
    raise NotImplementedError(reference)


def load_tokenizer_only(reference: str) -> Tokenizing:
    """The CPU side of the encoder that `load_encoder` gives: tokenizes, knows the fingerprint, loads no weights."""
    if reference == "hash" or reference.startswith("hash:"):
        return HashEncoder.parse(reference)
    raise NotImplementedError(reference)
