"""Collators: examples to the batch of one rank, as flat arrays without padding. numpy only.

Every random number is a hash of (seed, step, example, place): it does not depend on the number of ranks, on the order
of the rows or on what was drawn before, so a resumed or re-scaled run masks the same tokens. Knows tokens. Knows no
tokenizer, no model, no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayvec.modeling.tokens import TokenBatch, concatenate

Masking = Literal["bert", "all"]


@dataclass(frozen=True)
class MaskedBatch:
    """Texts with some tokens masked. `positions` are flat places in `texts.input_ids`; `labels` what stood there.

    masked: masked tokens of the whole batch that this one is a part of; see `split`.
    """

    texts: TokenBatch
    positions: np.ndarray  # int64 [M]
    labels: np.ndarray  # int64 [M]
    document_ids: Sequence[str]
    masked: int

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.texts.input_ids)

    def split(self, parts: int) -> list[MaskedBatch]:
        """The same texts and masks in so many smaller batches (fewer where there are fewer texts)."""
        if parts == 1:
            return [self]
        rows = [rows for rows in np.array_split(np.arange(len(self.texts)), parts) if len(rows)]
        return [self._rows(int(part[0]), int(part[-1]) + 1) for part in rows]

    def _rows(self, start: int, stop: int) -> MaskedBatch:
        first, last = self.texts.offsets[start], self.texts.offsets[stop]
        here = (self.positions >= first) & (self.positions < last)
        texts = self.texts.select(np.arange(start, stop))
        ids = self.document_ids[start:stop]
        return MaskedBatch(texts, self.positions[here] - first, self.labels[here], ids, self.masked)


@dataclass(frozen=True)
class ContrastiveBatch:
    """Texts in columns: B queries, then their B positives, then B first hard negatives, and so on (`width` columns).

    keys: one number a text, equal for equal token ids.
    """

    texts: TokenBatch
    keys: np.ndarray  # int64 [width * B]
    width: int
    document_ids: Sequence[str]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.texts.input_ids)


@dataclass(frozen=True)
class MaskPolicy:
    """What is masked, and with what. special_ids are never masked and never put in."""

    probability: float
    masking: Masking
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]


def mask_tokens(
    texts: TokenBatch, policy: MaskPolicy, examples: np.ndarray, document_ids: Sequence[str], *, seed: int, step: int
) -> MaskedBatch:
    """Choose tokens to predict and hide them: never a text's first (nothing stands before it), never a special one.

    "all": every chosen token becomes the mask token. "bert": 80 % the mask token, 10 % a random one, 10 % stay.
    """
    ids = texts.input_ids.copy()
    places = np.arange(len(ids)) - np.repeat(texts.offsets[:-1], texts.lengths)
    key_T = _mix(np.repeat(np.asarray(examples, np.uint64), texts.lengths), places.astype(np.uint64))
    eligible = (places > 0) & ~np.isin(ids, policy.special_ids)
    chosen = eligible & (_uniform(key_T, seed, step, 0) < policy.probability)
    labels = ids[chosen].astype(np.int64)
    if policy.masking == "all":
        ids[chosen] = policy.mask_id
    else:
        kind = _uniform(key_T, seed, step, 1)
        ids[chosen & (kind < 0.8)] = policy.mask_id
        randomised = chosen & (kind >= 0.8) & (kind < 0.9)
        ordinary = np.setdiff1d(np.arange(policy.vocab_size, dtype=np.int32), policy.special_ids)
        drawn = (_uniform(key_T, seed, step, 2) * len(ordinary)).astype(np.int64)
        ids[randomised] = ordinary[drawn[randomised]]
    masked = TokenBatch(ids, texts.offsets, texts.pool_start, texts.pool_end, texts.truncated)
    return MaskedBatch(masked, np.flatnonzero(chosen).astype(np.int64), labels, document_ids, len(labels))


def two_views(texts: TokenBatch, document_ids: Sequence[str]) -> ContrastiveBatch:
    """SimCSE: every text twice; it is dropout that makes the two differ."""
    return columns([texts, texts], document_ids)


def columns(texts: Sequence[TokenBatch], document_ids: Sequence[str]) -> ContrastiveBatch:
    """Queries, positives and hard negatives, one TokenBatch each, with equally many rows."""
    assert len({len(column) for column in texts}) == 1, "as many positives (and negatives) as queries"
    flat = concatenate(texts)
    return ContrastiveBatch(flat, text_keys(flat), len(texts), document_ids)


def text_keys(texts: TokenBatch) -> np.ndarray:
    """A non-negative number a text, int64 [n], equal where the token ids are equal."""
    digests = [hashlib.blake2b(texts.row(i).tobytes(), digest_size=8).digest() for i in range(len(texts))]
    return np.array([int.from_bytes(digest, "little") >> 1 for digest in digests], np.int64)


def _uniform(key_T: np.ndarray, seed: int, step: int, stream: int) -> np.ndarray:
    """Numbers in [0, 1), one a key: a hash, so independent of order."""
    salt = _mix(_mix(np.uint64(seed), np.uint64(step)), np.uint64(stream))
    return (_mix(key_T, salt) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(a: np.ndarray | np.uint64, b: np.ndarray | np.uint64) -> np.ndarray:
    """Hash two streams of 64-bit numbers into one (splitmix64's finaliser, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.atleast_1d(np.asarray(a, np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
        x = (x ^ np.asarray(b, np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = (x ^ (x >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        return np.asarray(x ^ (x >> np.uint64(30)))
