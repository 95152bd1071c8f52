from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from rayvec.errors import UserError
from rayvec.modeling import pooling
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.pooling import POOLINGS, Spans, pool
from rayvec.modeling.tokens import TokenBatch

DIM = 6


@pytest.fixture
def packed() -> PackedBatch:
    rows = [np.arange(5, 5 + n) for n in (7, 3, 5)]
    return PackedBatch.from_tokens(TokenBatch.from_rows(rows, pool=[(2, 6), (0, 3), (1, 2)]))


@pytest.fixture
def states(packed: PackedBatch) -> torch.Tensor:
    return torch.randn(len(packed.input_ids_T), DIM, generator=torch.Generator().manual_seed(0))


def by_hand(name: str, row: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    span = row[start:stop]
    weights = torch.arange(1.0, len(span) + 1)[:, None]
    return {
        "mean": span.mean(0),
        "weighted_mean": (span * weights).sum(0) / weights.sum(),
        "last_token": span[-1],
        "bos": row[0],
    }[name]


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(pooling).failed == 0


@pytest.mark.parametrize("name", POOLINGS)
def test_each_pooling_is_what_it_says(name: str, packed: PackedBatch, states: torch.Tensor) -> None:
    rows = states.split(packed.lengths.tolist())
    expected = torch.stack([by_hand(name, rows[0], 2, 6), by_hand(name, rows[1], 0, 3), by_hand(name, rows[2], 1, 2)])
    assert torch.allclose(pool(name, states, packed, dim=None, normalize=False), expected, atol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_half_precision_states_are_summed_in_fp32(name: str, packed: PackedBatch, states: torch.Tensor) -> None:
    assert pool(name, states.bfloat16(), packed, dim=None, normalize=False).dtype == torch.float32


@pytest.mark.parametrize("name", POOLINGS)
def test_a_text_alone_pools_to_the_same_bits(name: str, packed: PackedBatch, states: torch.Tensor) -> None:
    together = pool(name, states, packed, dim=None, normalize=True)[1]
    alone = PackedBatch.from_tokens(TokenBatch.from_rows([np.arange(3)]))
    assert torch.equal(pool(name, states[7:10], alone, dim=None, normalize=True)[0], together)


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_reach_exactly_the_pooled_tokens(name: str, packed: PackedBatch, states: torch.Tensor) -> None:
    states = states.requires_grad_()
    pool(name, states, packed, dim=None, normalize=False).sum().backward()
    assert states.grad is not None
    touched = states.grad.abs().sum(1).nonzero().flatten().tolist()
    spans = {"last_token": [5, 9, 11], "bos": [0, 7, 10]}
    assert touched == spans.get(name, [2, 3, 4, 5, 7, 8, 9, 11])


def test_dim_cuts_before_the_length_is_made_one(packed: PackedBatch, states: torch.Tensor) -> None:
    vectors = pool("mean", states, packed, dim=2, normalize=True)
    assert vectors.shape == (3, 2)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3))


def test_an_unknown_pooling_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="mean, weighted_mean, last_token, bos"):
        pooling.pooling("max")


def test_spans_that_touch_leave_no_gap() -> None:
    spans = Spans(torch.tensor([0, 2]), torch.tensor([0, 2]), torch.tensor([2, 4]))
    assert pooling.mean(torch.tensor([[1.0], [3.0], [5.0], [7.0]]), spans).tolist() == [[2.0], [6.0]]
