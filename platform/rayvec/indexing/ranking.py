"""A ranking: for each query the rows it found, best first, with their scores. Knows numpy, not how they were found.

Shapes: Q queries, K results a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

#: A place that holds no result: its row is -1 and its score minus infinity.
NO_ROW = -1
NO_SCORE = np.float32(-np.inf)


@dataclass(frozen=True)
class Ranking:
    """Rows int64 [Q, K] and scores float32 [Q, K], best first; -1 and minus infinity where a query found fewer."""

    rows: Rows
    scores: Scores

    def __post_init__(self) -> None:
        assert self.rows.ndim == 2 and self.rows.shape == self.scores.shape, (self.rows.shape, self.scores.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def top(self, k: int) -> Ranking:
        """The first k places only."""
        return Ranking(self.rows[:, :k], self.scores[:, :k])

    def without(self, marked_QK: npt.NDArray[np.bool_]) -> Ranking:
        """The ranking without the marked places: what stands after them moves up."""
        order = np.argsort(marked_QK, axis=1, kind="stable")
        rows, scores = np.where(marked_QK, NO_ROW, self.rows), np.where(marked_QK, NO_SCORE, self.scores)
        return Ranking(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def hits(self, query: int) -> list[tuple[int, float]]:
        """The (row, score) pairs of one query, without the empty places."""
        found = self.rows[query] >= 0
        return list(zip(self.rows[query, found].tolist(), self.scores[query, found].tolist(), strict=True))


def nothing(queries: int) -> Ranking:
    """A ranking of no place for each of so many queries."""
    return Ranking(np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32))


def best(rows_QN: Rows, scores_QN: Scores, k: int) -> Ranking:
    """The k best of N candidates a query, best first; of equal scores the smaller row goes first, so nothing wavers.

    >>> best(np.array([[4, 2, 9]]), np.array([[0.5, 0.5, 0.7]], dtype=np.float32), 2).rows.tolist()
    [[9, 2]]
    """
    order = np.lexsort((rows_QN, -scores_QN), axis=1)[:, :k]
    rows, scores = np.take_along_axis(rows_QN, order, axis=1), np.take_along_axis(scores_QN, order, axis=1)
    return Ranking(rows.astype(np.int64), scores.astype(np.float32))


def check_k(k: int, count: int) -> int:
    """The number of results to give: k, but never more than there are documents. Raises UserError when k is below 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k = {k!r}: ask for at least 1 result, as a whole number")
    return min(int(k), count)
