"""Vectors of queries that come again: the encoder is asked only for those that are not known.

Bounded in bytes; the ones not asked for longest go first. A process serves one encoder as long as it lives, so a vector
never grows stale. Knows texts and vectors. Knows no index, no route.
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


class CachedEncoder:
    """An EncoderService's `encode` with a memory. Tokens are counted only where the encoder has read them."""

    def __init__(self, encoder: EncoderService, max_bytes: int) -> None:
        self._encoder = encoder
        self._known: LRUCache[tuple[str | None, str], _Known] = LRUCache(max_bytes, getsizeof=lambda one: _size(one))
        self._hits = self._misses = 0

    def take_counts(self) -> tuple[int, int]:
        """How many texts were known and how many were not, since it was asked last."""
        counts = (self._hits, self._misses)
        self._hits = self._misses = 0
        return counts

    async def encode(self, texts: list[str], instruction: str | None) -> Encoded:
        """Vectors of texts, each distinct unknown one encoded once."""
        found = {text: self._known.get((instruction, text)) for text in texts}
        missing = [text for text, known in found.items() if known is None]
        self._hits += len(texts) - len(missing)
        self._misses += len(missing)
        n_tokens, batch = 0, None
        if missing:
            encoded = await self._encoder.encode(missing, instruction)
            n_tokens, batch = encoded.n_tokens, encoded.batch
            for text, vector_D, cut in zip(missing, encoded.vectors_BD, encoded.truncated, strict=True):
                found[text] = known = _Known(vector_D.copy(), cut)
                self._keep((instruction, text), known)
        answers = [found[text] for text in texts]
        return Encoded(
            np.stack([known.vector_D for known in answers if known is not None]),
            n_tokens,
            [known.truncated for known in answers if known is not None],
            batch,
        )

    def _keep(self, key: tuple[str | None, str], known: _Known) -> None:
        # A text may be 100,000 characters; what would push out everything else is not kept.
        if _size(known) + len(key[1]) <= self._known.maxsize and len(key[1]) <= OVERHEAD_BYTES:
            self._known[key] = known


def _size(known: _Known) -> int:
    return int(known.vector_D.nbytes) + OVERHEAD_BYTES
