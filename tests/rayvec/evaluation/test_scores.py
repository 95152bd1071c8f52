"""Scores of any metric: their intervals, differences between systems on the same items, means over sets."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.evaluation.scores import difference, drawn, mean_of, of_items, of_metric
from rayvec.evaluation.statistics import estimate
from rayvec.evaluation.sts import correlation


def test_a_mean_s_interval_is_the_bootstrap_s() -> None:
    values = np.random.default_rng(1).random(400)
    ours, usual = of_items(values).estimate, estimate(values)
    assert ours.mean == usual.mean
    assert ours.low == pytest.approx(usual.low, abs=0.005)
    assert ours.high == pytest.approx(usual.high, abs=0.005)


def test_all_systems_are_drawn_alike() -> None:
    first, again = list(drawn(50, 3)), list(drawn(50, 3))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def correlated(noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    gold = np.linspace(0, 5, 200)
    return gold, gold + noise * np.random.default_rng(seed).normal(size=200)


def test_a_clearly_better_correlation_is_told_from_chance() -> None:
    gold, good = correlated(1.0, 1)
    _, bad = correlated(4.0, 2)
    a, b = (of_metric(lambda i, x=x: correlation(x[i], gold[i]), 200, 299) for x in (good, bad))
    found = difference(a, b)
    assert found.p_value < 0.02
    assert 0 < found.low < found.difference < found.high
    assert difference(b, a).difference == -found.difference


def test_two_equal_noises_are_not_told_apart() -> None:
    gold, one = correlated(2.0, 3)
    _, other = correlated(2.0, 4)
    a, b = (of_metric(lambda i, x=x: correlation(x[i], gold[i]), 200, 299) for x in (one, other))
    assert difference(a, b).p_value > 0.05
    assert difference(a, a).p_value == 1.0


def test_means_over_sets_are_surer_than_one_set() -> None:
    """Two sets of equal size have independent draws, so their mean's interval is narrower, by about a root of two."""
    rng = np.random.default_rng(0)
    a, b = of_items(rng.random(300)), of_items(rng.random(300))
    both = mean_of([a, b])
    assert both.value == pytest.approx((a.value + b.value) / 2)
    width, one = both.estimate.high - both.estimate.low, a.estimate.high - a.estimate.low
    assert width == pytest.approx(one / np.sqrt(2), rel=0.1)
