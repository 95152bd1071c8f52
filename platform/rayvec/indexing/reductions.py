"""What fewer dimensions cost: exact search in each number of them, compared with exact search in all.

Knows samples and projections. Knows no index, no judgements and no Ray.

Shapes: N vectors, Q held-out queries, A asked queries, D dimensions, R dimensions kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rayvec.indexing import pca, proof
from rayvec.indexing.pca import Axes, Projection
from rayvec.indexing.ranking import Rows
from rayvec.indexing.samples import Sample, nearest
from rayvec.indexing.vectors import Vectors, unit

#: Ways to have fewer dimensions: name, method, whether whitened.
WAYS: dict[str, tuple[pca.Method, bool]] = {
    "pca": ("pca", False),
    "pca+whiten": ("pca", True),
    "truncate": ("truncate", False),
}
#: The numbers of dimensions that are compared, as far as the vectors have more.
DIMENSIONS = (1024, 768, 512, 256, 128, 64)
#: Vectors of the sample on which a build compares them: enough that neighbours are near, few enough for exact search.
SAMPLE = 20_000


@dataclass(frozen=True)
class Kept:
    """What is left in so many dimensions: recall@10 of the held-out queries, and what the asked ones find [A, K]."""

    way: str
    dimensions: int
    recall: float
    found: Rows


def smaller(dim: int, count: int, dimensions: Sequence[int] = DIMENSIONS) -> list[int]:
    """Those of the numbers that are below the vectors' own, and that so many vectors can tell apart.

    >>> smaller(512, 100_000)
    [256, 128, 64]
    """
    return [number for number in dimensions if number < dim and number <= count]


def axes_of(sample: Sample) -> Axes:
    """The principal axes of a sample, its queries left out."""
    return pca.axes(pca.moments([sample.vectors[sample.others]]))


def project(way: str, dimensions: int, sample: Sample, axes: Axes | None, *, normalize: bool = True) -> Projection:
    """The projection of that name. Raises UserError when the vectors are too few or too short."""
    method, whiten = WAYS[way]
    if method == "truncate":
        return pca.truncation(sample.dim, dimensions, normalize=normalize)
    assert axes is not None
    return axes.projection(dimensions, normalize=normalize, whiten=whiten)


def compare(sample: Sample, axes: Axes, dimensions: Sequence[int], ways: Iterable[str], depth: int) -> list[Kept]:
    """Exact search in each number of dimensions, each way; the first row is of all dimensions."""
    whole = Kept("", sample.dim, 1.0, _found(sample.vectors, sample.asked, depth))
    return [whole, *(kept for way in ways for kept in _one_way(sample, axes, dimensions, way, depth))]


def _one_way(sample: Sample, axes: Axes, dimensions: Sequence[int], way: str, depth: int) -> Iterator[Kept]:
    if not dimensions:
        return
    # The axes of fewer dimensions are the first of those of more: one product gives them all.
    method, whiten = WAYS[way]
    widest = project(method, max(dimensions), sample, axes, normalize=False)
    vectors_NR, asked_AR = widest(sample.vectors), widest(sample.asked)
    for number in dimensions:
        kept, asked = vectors_NR[:, :number], asked_AR[:, :number]
        if whiten:
            matrix, bias = (values.astype(np.float32) for values in axes.whitening(number))
            kept, asked = kept @ matrix.T + bias, asked @ matrix.T + bias
        kept, asked = unit(kept), unit(asked)
        found = nearest(kept, kept[sample.own], min(proof.K + 1, sample.count))
        yield Kept(way, number, proof.recall(found, sample.truth, sample.own), _found(kept, asked, depth))


def _found(vectors_NR: Vectors, asked_AR: Vectors, depth: int) -> Rows:
    if not len(asked_AR):
        return np.empty((0, depth), np.int64)
    return nearest(vectors_NR, asked_AR, min(depth, len(vectors_NR))).rows
