"""Tokens of many texts in flat arrays, and which of them are pooled: what passes from the CPU to the model.

Knows numpy and the TOKENS schema. Knows no tokenizer, no model, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayvec.errors import UserError
from rayvec.schema import N_TOKENS, TOKENS, TRUNCATED


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of n texts, end to end, without padding.

    Row i is `input_ids[offsets[i]:offsets[i + 1]]`; its pooled tokens are `[pool_start[i], pool_end[i])`, counted from
    the row's first token. Every row has at least one token and at least one pooled token.

    >>> batch = TokenBatch.from_rows([[1, 7, 8, 2], [1, 9, 2]], pool=[(1, 3), (1, 2)])
    >>> len(batch), batch.lengths.tolist(), batch.select([1]).input_ids.tolist()
    (2, [4, 3], [1, 9, 2])
    """

    input_ids: np.ndarray  # int32 [sum T]
    offsets: np.ndarray  # int64 [n + 1]
    pool_start: np.ndarray  # int32 [n]
    pool_end: np.ndarray  # int32 [n]
    truncated: np.ndarray  # bool [n]

    def __post_init__(self) -> None:
        n = len(self.offsets) - 1
        assert n >= 0 and self.offsets[-1] - self.offsets[0] == len(self.input_ids), "offsets must span input_ids"
        assert len(self.pool_start) == len(self.pool_end) == len(self.truncated) == n, "one entry a row"
        spans_fit = (self.pool_start >= 0) & (self.pool_start < self.pool_end) & (self.pool_end <= self.lengths)
        assert bool(np.all(spans_fit)), "each row pools at least one of its own tokens"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [n]."""
        return np.diff(self.offsets)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Sequence[int] | np.ndarray],
        pool: Sequence[tuple[int, int]] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> TokenBatch:
        """Build from one sequence of ids a row; by default every token is pooled and nothing was truncated."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        spans = np.asarray([(0, n) for n in lengths] if pool is None else pool, np.int32).reshape(-1, 2)
        flat = [np.asarray(row, np.int32) for row in rows]
        return cls(
            input_ids=np.concatenate(flat) if flat else np.zeros(0, np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            pool_start=spans[:, 0].copy(),
            pool_end=spans[:, 1].copy(),
            truncated=np.zeros(len(rows), bool) if truncated is None else np.asarray(truncated, bool),
        )

    def row(self, index: int) -> np.ndarray:
        """The ids of one row."""
        return self.input_ids[self.offsets[index] : self.offsets[index + 1]]

    def select(self, rows: Sequence[int] | np.ndarray | slice) -> TokenBatch:
        """Some rows, in the order given."""
        chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Position j of the result comes from its row's start in this batch, plus its place within the row.
        shift = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return TokenBatch(
            input_ids=self.input_ids[np.arange(int(offsets[-1])) + shift],
            offsets=offsets,
            pool_start=self.pool_start[chosen],
            pool_end=self.pool_end[chosen],
            truncated=self.truncated[chosen],
        )

    def distinct(self) -> tuple[TokenBatch, np.ndarray]:
        """The rows that differ in tokens or span, each once, and where each row of this batch is among them, int64 [n].

        >>> few, place = TokenBatch.from_rows([[1, 7], [1, 9], [1, 7]]).distinct()
        >>> len(few), place.tolist()
        (2, [0, 1, 0])
        """
        known: dict[tuple[bytes, int, int], int] = {}
        keys = zip(map(self.row, range(len(self))), self.pool_start.tolist(), self.pool_end.tolist(), strict=True)
        place_N = np.fromiter(
            (known.setdefault((row.tobytes(), start, end), len(known)) for row, start, end in keys), np.int64, len(self)
        )
        if len(known) == len(self):
            return self, place_N
        return self.select(np.unique(place_N, return_index=True)[1]), place_N

    def to_arrow(self) -> pa.Table:
        """A table of `schema.TOKENS`, one row a text."""
        lists = pa.ListArray.from_arrays(
            pa.array((self.offsets - self.offsets[0]).astype(np.int32)), pa.array(self.input_ids, pa.int32())
        )
        columns = {
            "input_ids": lists.cast(TOKENS.field("input_ids").type),
            "pool_start": pa.array(self.pool_start, pa.int32()),
            "pool_end": pa.array(self.pool_end, pa.int32()),
            N_TOKENS: pa.array(self.lengths.astype(np.int32), pa.int32()),
            TRUNCATED: pa.array(self.truncated, pa.bool_()),
        }
        return pa.table(columns, schema=TOKENS)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> TokenBatch:
        """Read the columns of `schema.TOKENS` from a table; other columns are left alone."""
        lists = table.column("input_ids").combine_chunks()
        if isinstance(lists, pa.ChunkedArray):  # pyarrow gives this for a table without any chunk
            lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
        lengths = table.column(N_TOKENS).to_numpy().astype(np.int64)
        return cls(
            input_ids=lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            pool_start=table.column("pool_start").to_numpy().astype(np.int32, copy=False),
            pool_end=table.column("pool_end").to_numpy().astype(np.int32, copy=False),
            truncated=table.column(TRUNCATED).to_numpy().astype(bool, copy=False),
        )


def require_several(texts: Sequence[str]) -> None:
    """Raise UserError for one text where a list of them is asked for: its characters would be taken for texts."""
    if isinstance(texts, str):
        raise UserError("one text where a list of texts is asked for; write [text]")


def concatenate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Several batches as one, rows in order."""
    if len(batches) == 1:
        return batches[0]
    lengths = np.concatenate([batch.lengths for batch in batches]) if batches else np.zeros(0, np.int64)
    return TokenBatch(
        input_ids=np.concatenate([b.input_ids for b in batches]) if batches else np.zeros(0, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pool_start=np.concatenate([b.pool_start for b in batches]) if batches else np.zeros(0, np.int32),
        pool_end=np.concatenate([b.pool_end for b in batches]) if batches else np.zeros(0, np.int32),
        truncated=np.concatenate([b.truncated for b in batches]) if batches else np.zeros(0, bool),
    )
