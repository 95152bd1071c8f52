"""A trial of one index on a sample: built, written, read back, tuned and timed as it would be in earnest.

Knows samples and shards. Knows no judgements, no table and no Ray.

Shapes: N vectors, A asked queries, D dimensions, R dimensions kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from rayvec.indexing import proof, spec
from rayvec.indexing.estimate import REFINE_BYTES
from rayvec.indexing.grid import named
from rayvec.indexing.pca import Projection
from rayvec.indexing.ranking import Rows
from rayvec.indexing.samples import Sample, batches, nearest
from rayvec.indexing.spec import Spec
from rayvec.indexing.vectors import Vectors, sample_rows


@dataclass(frozen=True)
class Trial:
    """One index on a sample of N: what it takes and gives. `found` [A, K] is what the asked queries find."""

    factory: str
    kind: str
    bytes: float
    recall: float
    search: dict[str, int]
    queries_per_second: float
    build_seconds: float
    found: Rows
    #: recall@10 against exact search in the same dimensions: what a build of this index is tuned to.
    fidelity: float


def run(
    sample: Sample, vectors_NR: Vectors, projection: Projection | None, template: str, count: int, target: float,
    depth: int, seed: int, threads: int,
) -> Trial:  # fmt: skip
    """Build a form over the sample's vectors, projected, and measure it; bytes are those of `count` vectors.

    Training and filling take `threads`, every timed query one. Raises UserError when the form cannot be built from so
    few vectors.
    """
    from rayvec.indexing import shards

    dim = vectors_NR.shape[1]
    chosen = spec.choose(named(template, sample.count, dim), sample.count, dim)
    shards.use_threads(threads)
    with TemporaryDirectory(prefix="rayvec-trial-") as folder:
        path = Path(folder) / "shard.faiss"
        begin = time.perf_counter()
        trained = _build(sample, vectors_NR, chosen, path, seed)
        seconds = time.perf_counter() - begin
        shard = shards.Shard.read(path, start=0, rows=sample.count, dim=dim)
        effort, recall = _tuned(shard, sample, vectors_NR, target)
        asked = projection(sample.asked) if projection else sample.asked
        found = shards.search([shard], np.ascontiguousarray(asked), min(depth, sample.count), effort)
        fidelity = _fidelity(shard, sample, vectors_NR, effort) if projection else recall
        speed = _queries_per_second(shard, sample, projection, effort)
        lists = spec.choose(named(template, count, dim), count, dim).centroids
        size = _bytes_of_all(chosen, lists, len(trained), path.stat().st_size, sample.count, count, dim)
    search = {name: number for name, number in vars(effort).items() if number is not None}
    return Trial(chosen.factory, chosen.kind, size, recall, search, speed, seconds, found.rows, fidelity)


def _build(sample: Sample, vectors_NR: Vectors, chosen: Spec, path: Path, seed: int) -> Any:
    from rayvec.indexing import shards

    dim = vectors_NR.shape[1]
    rows = sample_rows(sample.count, chosen.samples(sample.count, dim), seed, avoid=sample.own)
    trained = shards.train(chosen, dim, vectors_NR[rows], seed)
    shards.fill(trained, (batch for _, batch in batches(vectors_NR)), path)
    return trained


def _tuned(shard: Any, sample: Sample, vectors_NR: Vectors, target: float) -> tuple[Any, float]:
    """The least effort that reaches the target; where none does, that share of it which the most effort reaches."""
    from rayvec.indexing import shards

    queries = np.ascontiguousarray(vectors_NR[sample.own])

    @cache
    def measure(effort: int, factor: int | None = None) -> float:
        found = shards.search([shard], queries, min(proof.K + 1, sample.count), shard.effort(effort, factor))
        return proof.recall(found, sample.truth, sample.own)

    most = max(1, shard.most_effort)
    if shard.effort(1).ef_search:
        most = min(most, proof.MOST_EF_SEARCH)
    highest = measure(most, proof.MOST_K_FACTOR if shard.is_refined else None)
    goal = target if highest >= target else target * highest
    factor = proof.tune_refinement(lambda factor: measure(most, factor), goal) if shard.is_refined else None
    value, recall = proof.tune(lambda value: measure(value, factor), most, goal)
    return shard.effort(value, factor), recall


def _fidelity(shard: Any, sample: Sample, vectors_NR: Vectors, effort: Any) -> float:
    from rayvec.indexing import shards

    queries = np.ascontiguousarray(vectors_NR[sample.own])
    found = shards.search([shard], queries, min(proof.K + 1, sample.count), effort)
    return proof.recall(found, nearest(vectors_NR, queries, proof.WIDE), sample.own)


def _queries_per_second(shard: Any, sample: Sample, projection: Projection | None, effort: Any) -> float:
    """Of single queries on one core, their projection included; by the median, which a disturbance does not move."""
    from rayvec.indexing import shards

    def search(query: Vectors) -> None:
        prepared = projection(query) if projection else query
        shards.search([shard], np.ascontiguousarray(prepared), min(proof.K, sample.count), effort)

    shards.use_threads(1)
    rows = sample.own[: proof.TIMED_QUERIES]
    return 1 / float(np.median([_seconds(search, sample.vectors[row : row + 1]) for row in rows]))


def _seconds(search: Callable[[Vectors], None], query: Vectors) -> float:
    begin = time.perf_counter()
    search(query)
    return time.perf_counter() - begin


def _bytes_of_all(chosen: Spec, lists: int, trained: int, written: int, sampled: int, count: int, dim: int) -> float:
    """In memory: each vector takes what it took in the sample; what training fixed grows with the number of lists.

    Vectors that answers are refined with are mapped from disk, and do not count.
    """
    fixed = trained * lists / chosen.centroids if chosen.centroids else trained
    stored = REFINE_BYTES[chosen.refine] * dim
    return fixed + ((written - trained) / sampled - stored) * count
