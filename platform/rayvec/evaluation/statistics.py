"""How sure a number is: intervals of a mean by bootstrap, and whether one system beats another on the same queries.

Knows arrays of values, one a query. Deterministic: the same values give the same interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

RESAMPLES = 9999
LEVEL = 0.95
# Numbers held at once while resampling: the memory stays small for any number of queries.
_HELD = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over queries, and the interval in which it lies at `LEVEL` confidence."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """A JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """The mean difference a - b over the same queries, its interval, and the p-value of its being chance."""

    difference: float
    low: float
    high: float
    p_value: float

    def to_json(self) -> dict[str, float]:
        """A JSON object."""
        return asdict(self)


def estimate(values: Values) -> Estimate:
    """The mean with its percentile bootstrap interval (Sakai, SIGIR 2006, on bootstrapping over queries).

    >>> estimate(np.array([0.5, 0.5]))
    Estimate(mean=0.5, low=0.5, high=0.5)
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Estimate(mean, mean, mean)
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=max(1, _HELD // len(values)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high))


def compare(a: Values, b: Values) -> Comparison:
    """Whether `a` differs from `b`, by a two-sided paired permutation test (Smucker, Allan and Carterette, CIKM 2007).

    Under the null hypothesis the systems' labels may be swapped query by query, so the signs of the differences are.
    """
    assert a.shape == b.shape, (a.shape, b.shape)
    differences = a - b
    change = estimate(differences)
    if not np.any(differences):
        return Comparison(0.0, 0.0, 0.0, 1.0)
    from scipy.stats import permutation_test

    result = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _HELD // len(differences)),
        alternative="two-sided",
        rng=np.random.default_rng(0),
    )
    return Comparison(change.mean, change.low, change.high, float(result.pvalue))
