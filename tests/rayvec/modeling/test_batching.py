from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from rayvec.modeling import batching_plan
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.batching_plan import plan_batches
from rayvec.modeling.tokens import TokenBatch

LENGTHS = np.random.default_rng(0).integers(1, 60, 200)


@pytest.fixture
def packed() -> PackedBatch:
    rows = [np.arange(n) + 10 * n for n in (3, 5, 3, 2)]
    return PackedBatch.from_tokens(TokenBatch.from_rows(rows, pool=[(1, 3), (0, 5), (2, 3), (0, 1)]))


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(batching_plan).failed == 0


@pytest.mark.parametrize("padded", [True, False])
def test_every_row_is_in_exactly_one_batch(padded: bool) -> None:
    rows = np.concatenate(list(plan_batches(LENGTHS, 100, padded=padded)))
    assert sorted(rows.tolist()) == list(range(200))


def test_no_batch_is_over_the_budget() -> None:
    assert max(int(LENGTHS[rows].sum()) for rows in plan_batches(LENGTHS, 100)) <= 100


def test_padding_counts_where_there_is_padding() -> None:
    assert max(len(rows) * int(LENGTHS[rows].max()) for rows in plan_batches(LENGTHS, 100, padded=True)) <= 100


def test_a_text_over_the_budget_goes_alone() -> None:
    assert [rows.tolist() for rows in plan_batches(np.array([5, 500, 5]), 100)] == [[1], [0, 2]]


def test_no_rows_make_no_batch() -> None:
    assert list(plan_batches(np.zeros(0, np.int64), 100)) == []


def test_positions_begin_anew_in_each_text(packed: PackedBatch) -> None:
    assert packed.position_ids_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1]


def test_pooled_spans_are_counted_from_the_packs_start(packed: PackedBatch) -> None:
    assert (packed.pool_start_B.tolist(), packed.pool_stop_B.tolist()) == ([1, 3, 10, 11], [3, 8, 11, 12])


def test_a_slice_of_a_batch_packs_from_zero() -> None:
    batch = TokenBatch.from_rows([[1, 2], [3, 4, 5], [6]]).select(slice(1, 3))
    assert PackedBatch.from_tokens(batch).cu_seqlens.tolist() == [0, 3, 4]


def test_groups_hold_every_token_once(packed: PackedBatch) -> None:
    places = [
        torch.arange(g.start, g.start + g.count * g.length) if g.index is None else g.index for g in packed.groups
    ]
    assert sorted(torch.cat(places).tolist()) == list(range(13))


def test_groups_end_to_end_are_put_back_in_the_order_of_the_pack(packed: PackedBatch) -> None:
    places = torch.cat(
        [torch.arange(g.start, g.start + g.count * g.length) if g.index is None else g.index for g in packed.groups]
    )
    assert packed.grouped_index_T is not None
    assert places[packed.grouped_index_T].tolist() == list(range(13))


def test_a_sorted_pack_is_in_the_order_of_its_groups() -> None:
    packed = PackedBatch.from_tokens(TokenBatch.from_rows([np.arange(n) for n in (5, 3, 3, 2)]))
    assert packed.grouped_index_T is None
    assert [(group.length, group.start) for group in packed.groups] == [(5, 0), (3, 5), (2, 11)]


def test_padding_and_back_is_the_identity(packed: PackedBatch) -> None:
    padded = packed.input_ids_T[packed.padded_index_BL]
    assert torch.equal(padded.flatten()[packed.flat_index_T], packed.input_ids_T)
    assert packed.padding_mask_BL.sum(1).tolist() == packed.lengths.tolist()
