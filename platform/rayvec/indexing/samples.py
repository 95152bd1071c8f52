"""A sample of the vectors on which ways of indexing are compared, with queries and what they truly find.

Held-out queries are rows of the sample itself, which training does not see and whose own row counts for nothing; asked
queries are others, for which somebody knows the relevant documents. Both are searched against the sample.

Knows vectors and exact search. Knows no kind of index and no judgements.

Shapes: N vectors, Q held-out queries, A asked queries, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayvec.indexing import proof
from rayvec.indexing.ranking import Ranking, Rows
from rayvec.indexing.vectors import BATCH_ROWS, Vectors


@dataclass(frozen=True)
class Sample:
    """Vectors [N, D]; `own`, the rows [Q] that are queries; what they truly find; asked queries [A, D]."""

    vectors: Vectors
    own: Rows
    truth: Ranking
    asked: Vectors

    @property
    def count(self) -> int:
        """Number of vectors."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Their dimensions."""
        return int(self.vectors.shape[1])

    @property
    def others(self) -> Rows:
        """The rows that training may see; all, where the queries are all there is."""
        rest = np.setdiff1d(np.arange(self.count, dtype=np.int64), self.own, assume_unique=True)
        return rest if len(rest) else self.own


def batches(vectors_ND: Vectors) -> Iterator[tuple[int, Vectors]]:
    """(first row, vectors) of each piece that is worth a call."""
    for start in range(0, len(vectors_ND), BATCH_ROWS):
        yield start, vectors_ND[start : start + BATCH_ROWS]


def nearest(vectors_ND: Vectors, queries_QD: Vectors, k: int) -> Ranking:
    """The true nearest, by comparing every vector with every query."""
    from rayvec.indexing import shards

    return shards.exact(batches(vectors_ND), np.ascontiguousarray(queries_QD), k)


def sample_of(vectors_ND: Vectors, own: Rows, asked_AD: Vectors | None = None) -> Sample:
    """A sample with the truth found out: one exact search."""
    asked = np.empty((0, vectors_ND.shape[1]), np.float32) if asked_AD is None else asked_AD
    return Sample(vectors_ND, own, nearest(vectors_ND, vectors_ND[own], proof.WIDE), asked)
