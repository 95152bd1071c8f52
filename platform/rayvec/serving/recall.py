"""A look at an open index's recall while it serves: a few stored vectors, searched and compared with all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayvec.indexing.ranking import Ranking
from rayvec.indexing.shards import merge_rankings

if TYPE_CHECKING:
    from rayvec.indexing.searcher import Index

QUERIES = 8
K = 10


def recall_now(index: Index, seed: int | None = None) -> float | None:
    """The share of the true K nearest that a search finds, over QUERIES live vectors drawn at random; None of parts.

    Vectors are compared as they are stored: what their codes have lost is in the proof of the build, not here.
    """
    if not index.shards:
        return None
    live = np.setdiff1d(np.arange(index.shards[-1].start + index.shards[-1].count), index.dropped)
    rows = np.random.default_rng(seed).choice(live, min(QUERIES, len(live)), replace=False)
    queries = index.vectors(rows)
    k = min(K, index.count)
    found = index.nearest(queries, k)
    pairs = zip(index.shards, index.dropped_of, strict=True)
    true: Ranking = merge_rankings([shard.exhaustive(queries, k, gone) for shard, gone in pairs], k)
    return float(np.mean([len(np.intersect1d(*rows)) / k for rows in zip(found.rows, true.rows, strict=True)]))
