"""The part that makes vectors of texts: requests that wait share batches.

A plain class; `rayvec.serving.app` makes a deployment of it. It works off the event loop, so that health checks and new
requests are answered while it is busy. Knows the encoder. Knows no index, no HTTP and no Ray.

Shapes: B texts, D dimensions, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayvec.fingerprint import Fingerprint
from rayvec.modeling.tokens import TokenBatch, concatenate
from rayvec.modeling.windows import Windows
from rayvec.serving.batcher import Batched, Batcher
from rayvec.serving.config import Limits
from rayvec.serving.problems import Problem, invalid
from rayvec.serving.services import Encoded, EncoderFacts
from rayvec.serving.threads import Threads

if TYPE_CHECKING:
    from rayvec.modeling.encoder import Encoder

#: So many characters, of all texts and what is read around each, are tokenized by the thread that encodes them: to
#: another and back costs more than tokenizing them does. A longer request is tokenized while others are encoded.
SHORT = 1_000
#: What a template or a tokenizer may put around a text besides the instruction, as characters.
AROUND = 16


@dataclass(frozen=True)
class _Short:
    """Texts that are not tokenized yet."""

    texts: list[str]
    instruction: str | None


@dataclass(frozen=True)
class _Tokens:
    """A request, or a part of one, or documents of the writer."""

    batch: TokenBatch
    windows: Windows | None = None


@dataclass(frozen=True)
class _Done:
    """The vectors, what was read, and how many tokens were in the same batch."""

    vectors_BD: np.ndarray
    read: TokenBatch
    together: int


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
        self._batcher: Batcher[_Short | _Tokens, _Done | ValueError] = Batcher(
            self._encode_many, self._limits.batch_tokens
        )
        # One thread leaves the CPUs to the encoder.
        self._tokenizer = Threads(1, "tokenize")

    async def encode(self, texts: list[str], instruction: str | None = None) -> Encoded:
        """Vectors of texts. Raises Problem when they are more tokens than a request may have."""
        characters = sum(map(len, texts)) + len(texts) * (len(instruction or "") + AROUND)
        try:
            if characters <= min(SHORT, self._limits.batch_tokens):
                # Seldom more tokens than characters; where there are, the encoder keeps to its own budget.
                done, batched = await self._run(_Short(texts, instruction), characters)
                self._check_size(done.read)
                return self._encoded(done.read, done.vectors_BD, batched)
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
        self._check_size(batch)
        pieces = []
        for piece in _pieces(batch, self._limits.batch_tokens):
            # One after another: what others ask meanwhile comes in between.
            done, batched = await self._run(_Tokens(piece), len(piece.input_ids))
            pieces.append(done.vectors_BD)
        return self._encoded(batch, pieces[0] if len(pieces) == 1 else np.concatenate(pieces), batched)

    def _check_size(self, batch: TokenBatch) -> None:
        n_tokens, most = len(batch.input_ids), self._limits.request_tokens
        if n_tokens > most:
            message = f"input: {n_tokens} tokens in one request, {most} allowed; send fewer texts"
            raise invalid(message, "input", code="too_many_tokens")

    def _encoded(self, batch: TokenBatch, vectors_BD: np.ndarray, batched: Batched) -> Encoded:
        if not np.isfinite(vectors_BD).all():
            raise Problem(500, "encoder_not_finite", "the encoder gave a vector that is not finite for this input")
        return Encoded(vectors_BD, len(batch.input_ids), batch.truncated.tolist(), self._fingerprint, batched)

    async def encode_tokens(self, batch: TokenBatch, windows: Windows | None = None) -> np.ndarray:
        """Vectors of documents that the writer has tokenized: float32 [B, D], or [W, D] of windows within its rows.

        They wait among the queries, and are not checked: who asks has what to do about one that is not finite.
        """
        done, _ = await self._run(_Tokens(batch, windows), len(batch.input_ids))
        return done.vectors_BD

    async def _run(self, item: _Short | _Tokens, size: int) -> tuple[_Done, Batched]:
        """Wait among the others for the encoder. Raises ValueError for texts that it cannot read."""
        done, batched = await self._batcher.run_told(item, size)
        if isinstance(done, ValueError):
            raise done
        return done, Batched(batched.items, done.together, batched.waited_seconds)

    def _encode_many(self, items: Sequence[_Short | _Tokens]) -> list[_Done | ValueError]:
        """Each item's vectors; all that are not of windows go to the encoder together."""
        read = [self._read(item) for item in items]
        whole = [item.batch for item in read if isinstance(item, _Tokens) and item.windows is None]
        together = sum(len(item.batch.input_ids) for item in read if isinstance(item, _Tokens))
        vectors_BD = self._encoder.encode_tokens(concatenate(whole)) if whole else np.empty((0, self._encoder.dim))
        pieces = iter(np.split(vectors_BD, np.cumsum([len(batch) for batch in whole])[:-1]))
        done: list[_Done | ValueError] = []
        for item in read:
            if isinstance(item, ValueError):
                done.append(item)
            elif item.windows is None:
                done.append(_Done(next(pieces), item.batch, together))
            else:
                done.append(_Done(self._encoder.encode_windows(item.batch, item.windows), item.batch, together))
        return done

    def _read(self, item: _Short | _Tokens) -> _Tokens | ValueError:
        """Tokenized; an error is for the request that it is of, and not for those beside it."""
        if isinstance(item, _Tokens):
            return item
        try:
            return _Tokens(self._encoder.tokenize(item.texts, item.instruction))
        except ValueError as error:
            return error

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
    if len(batch.input_ids) <= budget:
        yield batch
        return
    start = 0
    while start < len(batch):
        stop = int(np.searchsorted(batch.offsets, batch.offsets[start] + budget, side="right")) - 1
        stop = max(stop, start + 1)
        yield batch.select(slice(start, stop))
        start = stop
