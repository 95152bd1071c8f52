"""Fewer dimensions, on Ray: principal axes by one pass over the parts, and what fewer dimensions would keep.

Shapes: N vectors, D dimensions of the encoder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce as fold

import numpy as np

from rayvec.indexing import pca, proof, reductions, tasks
from rayvec.indexing.corpus import PASSES, Corpus, take
from rayvec.indexing.pca import Axes, Method, Moments
from rayvec.indexing.ranking import Rows
from rayvec.indexing.reductions import Kept
from rayvec.indexing.samples import sample_of
from rayvec.indexing.vectors import Vectors, read_sampled, sample_rows, slices

#: Vectors that PCA looks at for each of their dimensions, at most. On spectra like those of encoders (λ ~ 1/i to
#: 1/i^0.6, 768 dimensions), 32 a dimension keep at least 99.4 % of the variance that the axes of all 150,000 keep, and
#: their recall; beyond, the products and not the reading would be the work.
SAMPLES_A_DIMENSION = 32


def axes(corpus: Corpus, seed: int = 0) -> Axes:
    """The principal axes, by one pass: of all vectors, or of a uniform random sample once there are far more."""
    rows = sample_rows(corpus.count, SAMPLES_A_DIMENSION * corpus.dim, seed)
    # A task's result is as large as D vectors are: fewer vectors a task than that, and moving it is the work.
    ranges = corpus.ranges(min(PASSES, max(1, len(rows) // (2 * corpus.dim))))
    shared = tasks.shared(corpus)
    work = ((shared, *bounds, rows[slice(*np.searchsorted(rows, bounds))]) for bounds in ranges)
    seen = [found for found in tasks.each(_moments, work) if found is not None]
    return pca.axes(fold(Moments.__add__, seen))


def _moments(corpus: Corpus, start: int, stop: int, rows: Rows) -> Moments | None:
    if not len(rows):
        return None
    return pca.moments(read_sampled(slices(corpus.parts, start, stop), rows, corpus.dim, normalize=corpus.normalize))


def reduce(
    corpus: Corpus,
    dimensions: int,
    *,
    method: Method = "pca",
    whiten: bool = False,
    seed: int = 0,
    found: Axes | None = None,
) -> Corpus:
    """The corpus in so many dimensions: by PCA, on axes already found or by a pass of its own, or by truncation."""
    if method == "truncate":
        projection = pca.truncation(corpus.dim, dimensions, normalize=corpus.normalize)
    else:
        found = found or axes(corpus, seed)
        projection = found.projection(dimensions, normalize=corpus.normalize, whiten=whiten)
    return replace(corpus, projection=projection)


def compare_dimensions(corpus: Corpus, found: Axes | None, seed: int) -> tuple[list[Kept], list[float]]:
    """What exact search finds in fewer dimensions, each way, on a sample; and the curve of explained variance.

    It costs one more pass over the parts, and exact search of 256 queries in a sample of 20,000 for each number of
    dimensions: seconds. The axes are those found, or the sample's own.
    """
    rows = sample_rows(corpus.count, reductions.SAMPLE, seed + 2)
    own = sample_rows(len(rows), min(proof.QUERIES, len(rows)), seed + 3)
    cpus = tasks.node_cpus()
    return tasks.one(_compare_dimensions, take(corpus, rows), own, found, cpus, cpus=cpus)


def _compare_dimensions(vectors: Vectors, own: Rows, found: Axes | None, cpus: int) -> tuple[list[Kept], list[float]]:
    from rayvec.indexing import shards

    shards.use_threads(tasks.threads(cpus))
    sample = sample_of(vectors, own)
    axes = found or reductions.axes_of(sample)
    numbers = reductions.smaller(sample.dim, axes.count)
    return reductions.compare(sample, axes, numbers, reductions.WAYS, proof.K), axes.explained.tolist()
