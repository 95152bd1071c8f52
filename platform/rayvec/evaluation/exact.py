"""Exact search: every query against every vector by matrix products, a batch of vectors at a time.

Knows arrays. Knows no index and no encoder. Shapes: Q queries, N vectors of a batch, D dimensions, K results a query.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


#: Scores that are compared at once: with their rows and their order some twenty bytes each, so 330 MB.
_SCORES = 1 << 24


class ExactSearch:
    """The best rows seen so far for each query, by inner product; memory is Q·K and a bounded piece of the scores.

    >>> search = ExactSearch(np.eye(2, dtype=np.float32), k=2)
    >>> search.add(np.array([[0, 1], [1, 0], [0.5, 0.5]], dtype=np.float32))
    >>> search.rows_QK.tolist()
    [[1, 2], [0, 2]]
    """

    def __init__(self, queries_QD: Vectors, k: int) -> None:
        assert k >= 1
        self.queries_QD, self.k, self.count = queries_QD, k, 0
        self.rows_QK: Rows = np.empty((len(queries_QD), 0), dtype=np.int64)
        self.scores_QK: Vectors = np.empty((len(queries_QD), 0), dtype=np.float32)

    def add(self, vectors_ND: Vectors) -> None:
        """Take the next vectors; their rows count on from those taken before."""
        # Never less than K at once: each piece costs another look at the K best.
        step = max(self.k, _SCORES // max(1, len(self.queries_QD)))
        for start in range(0, len(vectors_ND), step):
            self._add(vectors_ND[start : start + step])

    def _add(self, vectors_ND: Vectors) -> None:
        scores_QN = self.queries_QD @ vectors_ND.T
        rows_N = np.arange(self.count, self.count + len(vectors_ND))
        self.count += len(vectors_ND)
        scores = np.concatenate([self.scores_QK, scores_QN], axis=1)
        rows = np.concatenate([self.rows_QK, np.broadcast_to(rows_N, scores_QN.shape)], axis=1)
        # Stable, and older rows stand first: of equal scores the smaller row wins.
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.rows_QK = np.take_along_axis(rows, order, axis=1)
        self.scores_QK = np.take_along_axis(scores, order, axis=1)


def shortened(vectors_ND: Vectors, dim: int) -> Vectors:
    """The first `dim` dimensions, brought to length 1 again (Matryoshka Representation Learning, section 3)."""
    cut = vectors_ND[:, :dim]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    unit_ND: Vectors = np.asarray(cut / np.maximum(lengths, 1e-12), dtype=np.float32)
    return unit_ND
