from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
import pytest

from rayvec.modeling import tokens
from rayvec.modeling.tokens import TokenBatch, concatenate
from rayvec.schema import TOKENS


@pytest.fixture
def batch() -> TokenBatch:
    rows = [[1, 5, 6, 7], [1, 8], [1, 9, 10]]
    return TokenBatch.from_rows(rows, pool=[(1, 4), (1, 2), (1, 3)], truncated=[False, True, False])


def same(a: TokenBatch, b: TokenBatch) -> bool:
    rows_equal = len(a) == len(b) and all(np.array_equal(a.row(i), b.row(i)) for i in range(len(a)))
    spans_equal = np.array_equal(a.pool_start, b.pool_start) and np.array_equal(a.pool_end, b.pool_end)
    return rows_equal and spans_equal and np.array_equal(a.truncated, b.truncated)


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(tokens).failed == 0


def test_arrow_has_the_schema_that_stages_agree_on(batch: TokenBatch) -> None:
    assert batch.to_arrow().schema == TOKENS


def test_arrow_round_trip(batch: TokenBatch) -> None:
    assert same(TokenBatch.from_arrow(batch.to_arrow()), batch)


def test_arrow_slices_and_chunks_are_read_right(batch: TokenBatch) -> None:
    table = batch.to_arrow()
    pieces = pa.concat_tables([table.slice(2, 1), table.slice(0, 2)])
    assert same(TokenBatch.from_arrow(pieces), batch.select([2, 0, 1]))


def test_an_empty_table_is_an_empty_batch(batch: TokenBatch) -> None:
    assert len(TokenBatch.from_arrow(batch.to_arrow().slice(0, 0))) == 0


def test_select_takes_rows_in_the_order_given(batch: TokenBatch) -> None:
    chosen = batch.select([2, 0])
    assert chosen.input_ids.tolist() == [1, 9, 10, 1, 5, 6, 7]


def test_concatenate_is_the_inverse_of_select(batch: TokenBatch) -> None:
    assert same(concatenate([batch.select(slice(0, 1)), batch.select(slice(1, 3))]), batch)


def test_a_row_without_a_pooled_token_is_refused() -> None:
    with pytest.raises(AssertionError, match="pools at least one"):
        TokenBatch.from_rows([[1, 2]], pool=[(2, 2)])
