"""Vectors of queries that come again: the encoder is asked only for those that are not known.

Bounded in bytes; the ones not asked for longest go first. A vector is kept with its encoder's fingerprint, and is no
answer any more once another encoder has answered. Knows texts and vectors. Knows no index, no route.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from rayvec.serving.services import Encoded, EncoderService

#: What a short text and its place in the cache take beside its vector.
OVERHEAD_BYTES = 500


@dataclass(frozen=True)
class _Known:
    vector_D: np.ndarray
    truncated: bool


#: The encoder's fingerprint, the instruction, the text.
_Key = tuple[str, str | None, str]


class CachedEncoder:
    """An EncoderService's `encode` with a memory. Tokens are counted only where the encoder has read them."""

    def __init__(self, encoder: EncoderService, max_bytes: int) -> None:
        self._encoder = encoder
        self._known: LRUCache[_Key, _Known] = LRUCache(max_bytes, getsizeof=lambda one: _size(one))
        self._fingerprint = ""
        self._hits = self._misses = 0

    def forget(self) -> None:
        """Ask the encoder anew for all."""
        self._known.clear()

    def take_counts(self) -> tuple[int, int]:
        """How many texts were known and how many were not, since it was asked last."""
        counts = (self._hits, self._misses)
        self._hits = self._misses = 0
        return counts

    async def encode(self, texts: list[str], instruction: str | None) -> Encoded:
        """Vectors of texts, each distinct unknown one encoded once; all of them of one encoder."""
        fingerprint = self._fingerprint
        found = {text: self._known.get((fingerprint, instruction, text)) for text in texts}
        missing = [text for text, known in found.items() if known is None]
        self._hits += len(texts) - len(missing)
        self._misses += len(missing)
        n_tokens, batch = 0, None
        if missing:
            encoded = await self._encoder.encode(missing, instruction)
            if encoded.fingerprint != fingerprint and len(missing) < len(found):
                missing = list(found)
                encoded = await self._encoder.encode(missing, instruction)
            self._fingerprint = fingerprint = encoded.fingerprint
            n_tokens, batch = encoded.n_tokens, encoded.batch
            for text, vector_D, cut in zip(missing, encoded.vectors_BD, encoded.truncated, strict=True):
                found[text] = known = _Known(vector_D.copy(), cut)
                self._keep((fingerprint, instruction, text), known)
            if missing == texts:
                return encoded
        answers = [found[text] for text in texts]
        return Encoded(
            np.stack([known.vector_D for known in answers if known is not None]),
            n_tokens,
            [known.truncated for known in answers if known is not None],
            fingerprint,
            batch,
        )

    def _keep(self, key: _Key, known: _Known) -> None:
        # A text may be 100,000 characters; what would push out everything else is not kept.
        if _size(known) + len(key[2]) <= self._known.maxsize and len(key[2]) <= OVERHEAD_BYTES:
            self._known[key] = known


def _size(known: _Known) -> int:
    return int(known.vector_D.nbytes) + OVERHEAD_BYTES
