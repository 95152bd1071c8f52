"""Fusion: several rankings of the same queries made into one. Knows numpy and rankings, not where they came from.

Shapes: Q queries, K results a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError
from rayvec.indexing.ranking import NO_ROW, NO_SCORE, Ranking, Rows, Scores, check_k

Points = npt.NDArray[np.float64]

#: Cormack, Clarke and Büttcher (SIGIR 2009), section 2: 60 was near the best in their pilot and has become the usual.
RRF_CONSTANT = 60.0


#: What the dense scores count beside BM25's in hybrid search. Chosen on held-out docstrings other than those whose
#: results are told: .5 to .7 were best, and reciprocal ranks of equal weight fell below BM25 alone.
DENSE_WEIGHT = 0.5


def hybrid(lexical: Ranking, dense: Ranking, k: int, dense_weight: float = DENSE_WEIGHT) -> Ranking:
    """The platform's hybrid: BM25's scores and the encoder's, each brought to [0, 1] within a query, weighted 1 : w.

    A row that is best in both has a score of 1.
    """
    whole = 1.0 + dense_weight
    return weighted_fusion([lexical, dense], k, weights=[1.0 / whole, dense_weight / whole])


def reciprocal_rank_fusion(
    rankings: Sequence[Ranking], k: int, constant: float = RRF_CONSTANT, weights: Sequence[float] | None = None
) -> Ranking:
    """Each ranking gives a row weight / (constant + rank), ranks counted from 1; the sums decide, then the smaller row.

    Looks at ranks only, so that scores of different kinds need no common scale.
    """
    if constant < 0:
        raise UserError(f"constant = {constant}: reciprocal rank fusion needs a constant of 0 or more; 60 is usual")

    def points_of(ranking: Ranking) -> Points:
        ranks = np.arange(1, ranking.rows.shape[1] + 1)
        return np.broadcast_to(1.0 / (constant + ranks), ranking.rows.shape)

    return _fuse(rankings, k, weights, points_of)


def weighted_fusion(rankings: Sequence[Ranking], k: int, weights: Sequence[float] | None = None) -> Ranking:
    """Each ranking gives a row weight · its score, brought to [0, 1] within each query; a row not found is given 0.

    The lowest score found counts 0 and the highest 1 (min-max); a query whose scores are all equal gives them all 1.
    """
    return _fuse(rankings, k, weights, _min_max)


def _min_max(ranking: Ranking) -> Points:
    found = ranking.rows >= 0
    scores = np.where(found, ranking.scores, 0.0).astype(np.float64)
    low = np.min(scores, axis=1, where=found, initial=np.inf, keepdims=True)
    high = np.max(scores, axis=1, where=found, initial=-np.inf, keepdims=True)
    span = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (scores - np.where(np.isfinite(low), low, 0.0)) / span, 1.0)


def _fuse(
    rankings: Sequence[Ranking],
    k: int,
    weights: Sequence[float] | None,
    points_of: Callable[[Ranking], Points],
) -> Ranking:
    weights = _check(rankings, weights)
    candidates = np.concatenate([ranking.rows for ranking in rankings], axis=1)
    points = np.concatenate([w * points_of(r) for w, r in zip(weights, rankings, strict=True)], axis=1)
    k = check_k(k, candidates.shape[1])
    rows: Rows = np.full((len(candidates), k), NO_ROW, dtype=np.int64)
    scores: Scores = np.full((len(candidates), k), NO_SCORE, dtype=np.float32)
    for query in range(len(candidates)):
        found = candidates[query] >= 0
        unique, place = np.unique(candidates[query][found], return_inverse=True)
        sums = np.bincount(place, weights=points[query][found], minlength=len(unique))
        # Sums of the same points in another order differ in the last bit: rounding keeps equal rows equal.
        order = np.lexsort((unique, -np.round(sums, 12)))[:k]
        rows[query, : len(order)] = unique[order]
        scores[query, : len(order)] = sums[order]
    return Ranking(rows, scores)


def _check(rankings: Sequence[Ranking], weights: Sequence[float] | None) -> list[float]:
    if not rankings:
        raise UserError("nothing to fuse: give at least one ranking")
    lengths = {len(ranking) for ranking in rankings}
    if len(lengths) > 1:
        raise UserError(f"the rankings answer different numbers of queries: {sorted(lengths)}; rank the same queries")
    chosen = [1.0] * len(rankings) if weights is None else [float(weight) for weight in weights]
    if len(chosen) != len(rankings) or not all(np.isfinite(chosen)) or min(chosen) < 0:
        raise UserError(f"weights = {chosen}: give one weight of 0 or more for each of the {len(rankings)} rankings")
    return chosen
