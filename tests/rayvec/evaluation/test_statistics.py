from __future__ import annotations

import numpy as np
import pytest

from rayvec.evaluation.statistics import Comparison, Estimate, compare, estimate


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    found = estimate(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(1).random(50)
    assert estimate(values) == estimate(values)


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3]])
def test_a_constant_has_no_width(values: list[float]) -> None:
    assert estimate(np.array(values)) == Estimate(0.3, 0.3, 0.3)


def test_few_queries_are_tested_exactly() -> None:
    """Of 2^5 ways to set the signs, two are as far out as five gains in a row: 2/32."""
    found = compare(np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.array([0.4, 0.4, 0.4, 0.4, 0.4]))
    assert found.p_value == pytest.approx(2 / 32)
    assert found.difference == pytest.approx(0.3)


def test_pairs_tell_what_the_means_alone_do_not() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(200)  # queries differ far more than the systems do
    better, worse = hard + 0.02 + rng.normal(0, 0.02, 200), hard
    assert estimate(better).low < estimate(worse).mean
    assert compare(better, worse).p_value < 0.001


def test_chance_is_not_called_significant() -> None:
    rng = np.random.default_rng(3)
    p_values = [compare(rng.random(30), rng.random(30)).p_value for _ in range(20)]
    assert sum(p < 0.05 for p in p_values) <= 4


def test_equal_systems_do_not_differ() -> None:
    assert compare(np.ones(9), np.ones(9)) == Comparison(0.0, 0.0, 0.0, 1.0)
