"""The part that makes vectors of texts: requests that wait share batches.

A plain class; `rayvec.serving.app` makes a deployment of it. It works off the event loop, so that health checks and new
requests are answered while it is busy. Knows the encoder. Knows no index, no HTTP and no Ray.

Shapes: B texts, D dimensions, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayvec.modeling.tokens import TokenBatch, concatenate
from rayvec.modeling.windows import Windows
from rayvec.serving.batcher import Batcher
from rayvec.serving.config import Limits
from rayvec.serving.problems import Problem, invalid
from rayvec.serving.services import Encoded, EncoderFacts
from rayvec.serving.threads import Threads
from rayvec.storage import Fingerprint

if TYPE_CHECKING:
    from rayvec.modeling.encoder import Encoder

_Item = tuple[TokenBatch, Windows | None]


class QueryEncoder:
    """Encodes texts of many requests in shared batches, those of a long request in several.

    Raises MismatchError unless the encoder is the expected one.
    """

    def __init__(self, encoder: Encoder, expected: Fingerprint | None = None, limits: Limits | None = None) -> None:
        if expected is not None:
            expected.require(encoder.fingerprint, mine="index", theirs="encoder")
        self._encoder = encoder
        self._fingerprint = encoder.fingerprint.short
        self._limits = limits or Limits()
        self._batcher: Batcher[_Item, np.ndarray] = Batcher(self._encode_many, self._limits.batch_tokens)
        # Tokenizers are not all safe in two threads at once; one thread also keeps the CPUs for the encoder.
        self._tokenizer = Threads(1, "tokenize")

    async def encode(self, texts: list[str], instruction: str | None = None) -> Encoded:
        """Vectors of texts. Raises Problem when they are more tokens than a request may have."""
        try:
            batch = await self._tokenizer.run(self._encoder.tokenize, texts, instruction)
        except ValueError as error:  # an instruction that leaves no room for the text, say: the client's own mistake
            raise invalid(str(error), "instruction" if instruction else None) from None
        return await self._encode(batch)

    async def encode_ids(self, ids: list[list[int]]) -> Encoded:
        """Vectors of token ids of this encoder's own tokenizer, special tokens included; all of them are pooled."""
        worst = max(max(row) for row in ids)
        if worst >= self._encoder.vocab_size:
            vocabulary = f"this model's vocabulary of {self._encoder.vocab_size}"
            message = f"input: token id {worst} is not in {vocabulary}; send text instead"
            raise invalid(message, "input")
        longest = self._encoder.max_length
        cut = [len(row) > longest for row in ids]
        return await self._encode(TokenBatch.from_rows([row[:longest] for row in ids], truncated=cut))

    async def _encode(self, batch: TokenBatch) -> Encoded:
        n_tokens = int(batch.lengths.sum())
        if n_tokens > self._limits.request_tokens:
            message = (
                f"input: {n_tokens} tokens in one request, {self._limits.request_tokens} allowed; send fewer texts"
            )
            raise invalid(message, "input", code="too_many_tokens")
        pieces = []
        for piece in _pieces(batch, self._limits.batch_tokens):
            # One after another: what others ask meanwhile comes in between.
            vectors_BD, batched = await self._batcher.run_told((piece, None), int(piece.lengths.sum()))
            pieces.append(vectors_BD)
        vectors_BD = np.concatenate(pieces)
        if not np.isfinite(vectors_BD).all():
            raise Problem(500, "encoder_not_finite", "the encoder gave a vector that is not finite for this input")
        return Encoded(vectors_BD, n_tokens, batch.truncated.tolist(), self._fingerprint, batched)

    async def encode_tokens(self, batch: TokenBatch, windows: Windows | None = None) -> np.ndarray:
        """Vectors of documents that the writer has tokenized: float32 [B, D], or [W, D] of windows within its rows.

        They wait among the queries, and are not checked: who asks has what to do about one that is not finite.
        """
        return await self._batcher.run((batch, windows), int(batch.lengths.sum()))

    def _encode_many(self, items: Sequence[_Item]) -> list[np.ndarray]:
        """Each item's vectors; all that are not of windows go to the encoder together."""
        whole = [batch for batch, windows in items if windows is None]
        vectors_BD = self._encoder.encode_tokens(concatenate(whole)) if whole else np.empty((0, self._encoder.dim))
        pieces = iter(np.split(vectors_BD, np.cumsum([len(batch) for batch in whole])[:-1]))
        return [
            next(pieces) if windows is None else self._encoder.encode_windows(batch, windows)
            for batch, windows in items
        ]

    async def facts(self) -> EncoderFacts:
        """What is loaded."""
        encoder = self._encoder
        return EncoderFacts(self._fingerprint, encoder.dim, encoder.max_length)

    async def check_health(self) -> None:
        """Called by Serve: a batch or a tokenizer that hangs (a stuck device) makes the part be restarted."""
        limit = 2 * self._limits.timeout_seconds
        self._tokenizer.check(limit)
        if self._batcher.busy_seconds > limit:
            raise RuntimeError(f"one batch has been running for more than {limit:.0f} s")


def _pieces(batch: TokenBatch, budget: int) -> Iterator[TokenBatch]:
    """A batch in parts of at most `budget` tokens; a row that is longer goes alone."""
    start = 0
    while start < len(batch):
        stop = int(np.searchsorted(batch.offsets, batch.offsets[start] + budget, side="right")) - 1
        stop = max(stop, start + 1)
        yield batch if (start, stop) == (0, len(batch)) else batch.select(slice(start, stop))
        start = stop
