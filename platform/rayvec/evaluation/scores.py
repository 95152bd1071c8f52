"""Scores of any metric on any set: the value, how sure it is, and whether one system's is above another's.

A metric that is a mean over items (nDCG over queries, accuracy over texts) has a value an item; one that is not (a
correlation, average precision, v-measure) is computed again on items drawn with replacement. All systems of a set are
drawn alike, so that differences of two systems' draws are draws of the difference.

Knows arrays. Knows no encoder and no file. Shapes: N items, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayvec.evaluation.statistics import LEVEL, Comparison, Estimate, Values, compare

DRAWS = 999

Indices = npt.NDArray[np.int64]
#: The metric on some of the items, by their places (repeated where they were drawn twice).
Metric = Callable[[Indices], float]


@dataclass(frozen=True)
class Score:
    """A metric's value on a set, what it is on each of R draws of the set's items, and per item where it is a mean."""

    value: float
    draws_R: Values
    items_N: Values | None = None

    @property
    def estimate(self) -> Estimate:
        """The value with its percentile interval."""
        low, high = np.quantile(self.draws_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(self.value, float(low), float(high))


def drawn(count: int, draws: int = DRAWS) -> Iterator[Indices]:
    """Draws with replacement of so many items, the same for every system of a set."""
    rng = np.random.default_rng(count)
    return (rng.integers(0, count, count) for _ in range(draws))


def of_items(values_N: Values) -> Score:
    """The score of a metric that is the mean of its items' values.

    >>> of_items(np.array([0.5, 0.5])).estimate
    Estimate(mean=0.5, low=0.5, high=0.5)
    """
    items = np.asarray(values_N, np.float64)
    return Score(float(items.mean()), np.array([items[draw].mean() for draw in drawn(len(items))]), items)


def of_metric(metric: Metric, count: int, draws: int = DRAWS, *, centred: bool = False) -> Score:
    """The score of a metric that is no mean over its `count` items.

    centred: shift the draws to lie around the value, for metrics that are higher where items are drawn twice.
    """
    value, draws_R = metric(np.arange(count)), np.array([metric(draw) for draw in drawn(count, draws)])
    return Score(value, draws_R - draws_R.mean() + value if centred else draws_R)


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean over several sets, which are drawn independently of each other."""
    fewest = min(len(score.draws_R) for score in scores)
    # Sets of equally many items are drawn alike; shifted against each other, their draws are independent.
    rolled = [np.roll(score.draws_R[:fewest], 7 * place) for place, score in enumerate(scores)]
    return Score(float(np.mean([score.value for score in scores])), np.mean(rolled, axis=0))


def difference(a: Score, b: Score) -> Comparison:
    """The mean difference a - b on the same items, its interval, and the two-sided p-value of its being chance.

    By permutation where the metric is a mean over items (see `statistics.compare`); else by how many of the draws'
    differences lie on the other side of 0 (Efron and Tibshirani 1993, section 15.4).
    """
    if a.items_N is not None and b.items_N is not None:
        return compare(a.items_N, b.items_N)
    count = min(len(a.draws_R), len(b.draws_R))
    differences_R = a.draws_R[:count] - b.draws_R[:count]
    low, high = np.quantile(differences_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    fewer = min(np.sum(differences_R <= 0), np.sum(differences_R >= 0))
    return Comparison(a.value - b.value, float(low), float(high), min(1.0, 2 * float(fewer + 1) / (count + 1)))
