"""Which examples make a batch: one set a batch, weights, rounds, and nothing but (seed, step) decides."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.data.mixing import ExampleSet, FixedSizeBatches, TokenBudgetBatches
from rayvec.errors import UserError

SETS = [ExampleSet("a", 0, 100), ExampleSet("b", 100, 400, weight=0.5)]


def test_each_batch_comes_from_one_set() -> None:
    batches = FixedSizeBatches(SETS, batch_size=8, seed=0)
    for step in range(50):
        examples = batches(step)
        assert len(set(examples.tolist())) == 8
        assert (examples < 100).all() or (examples >= 100).all()


def test_sets_are_drawn_by_size_times_weight() -> None:
    batches = FixedSizeBatches(SETS, batch_size=8, seed=0)
    share = np.mean([batches.set_of(step) for step in range(4000)])
    assert share == pytest.approx(150 / 250, abs=0.03)


def test_a_later_step_does_not_need_the_earlier_ones() -> None:
    straight = [FixedSizeBatches(SETS, batch_size=8, seed=3)(step).tolist() for step in (0, 7, 2000)]
    walker = FixedSizeBatches(SETS, batch_size=8, seed=3)
    assert [walker(step).tolist() for step in range(2001)][::-1][:1] == straight[2:]
    assert [walker(0).tolist(), walker(7).tolist()] == straight[:2]


def test_a_round_shows_each_example_once_and_the_next_round_another_order() -> None:
    batches = FixedSizeBatches([ExampleSet("a", 10, 34)], batch_size=8, seed=0)
    rounds = [np.concatenate([batches(step) for step in range(start, start + 3)]) for start in (0, 3)]
    assert [sorted(r.tolist()) for r in rounds] == [list(range(10, 34))] * 2
    assert rounds[0].tolist() != rounds[1].tolist()


def test_a_set_smaller_than_the_batch_is_named() -> None:
    with pytest.raises(UserError, match="set b has 3 examples, fewer than batch_size 8"):
        FixedSizeBatches([ExampleSet("b", 0, 3)], batch_size=8, seed=0)


def test_token_budget_shows_each_example_once_a_round() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, size=200)
    batches = TokenBudgetBatches(lengths, tokens=400, seed=1)
    steps = int(lengths.sum()) // 400
    seen = [batches(step) for step in range(steps)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(200))
    totals = [int(lengths[examples].sum()) for examples in seen]
    assert all(abs(total - lengths.sum() / steps) <= 50 for total in totals)


@pytest.mark.parametrize("rows", [100, 101, 107])
def test_what_is_left_over_is_spread_over_the_round(rows: int) -> None:
    """Each batch has its eight texts, so that eight workers have one each, and none has much more."""
    batches = TokenBudgetBatches(np.full(rows, 16), tokens=8 * 16, seed=1)
    seen = [batches(step) for step in range(rows // 8)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(rows))
    assert {len(examples) for examples in seen} <= {8, 9}
    assert batches(rows // 8).tolist() != seen[0].tolist()  # the next round


def test_token_budget_depends_on_seed_and_round() -> None:
    lengths = np.full(40, 10)
    first = TokenBudgetBatches(lengths, tokens=100, seed=1)
    assert first(0).tolist() == TokenBudgetBatches(lengths, tokens=100, seed=1)(0).tolist()
    assert first(0).tolist() != TokenBudgetBatches(lengths, tokens=100, seed=2)(0).tolist()
    assert first(0).tolist() != first(4).tolist()


def test_no_text_at_all_is_named() -> None:
    with pytest.raises(UserError, match="no text to train on"):
        TokenBudgetBatches(np.zeros(0, np.int64), tokens=10, seed=0)
