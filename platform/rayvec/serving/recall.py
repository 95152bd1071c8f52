"""A look at an open index's recall while it serves: a few stored vectors, searched and compared with all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvec.indexing import proof
from rayvec.indexing.maps import live_rows
from rayvec.indexing.shards import merge_rankings

if TYPE_CHECKING:
    from rayvec.indexing.searcher import Index

QUERIES = 8


def recall_now(index: Index, seed: int | None = None) -> float | None:
    """The share of the true nearest that a search finds, of QUERIES live vectors drawn at random; None without shards.

    Vectors are compared as they are stored: what their codes have lost is in the proof of the build, not here.
    """
    if not index.shards:
        return None
    rows = live_rows(index, QUERIES, seed)
    queries = index.vectors(rows)
    k = min(proof.K + 1, index.count)  # each finds itself, too
    pairs = zip(index.shards, index.dropped_of, strict=True)
    true = merge_rankings([shard.exhaustive(queries, k, gone) for shard, gone in pairs], k)
    return proof.recall(index.nearest(queries, k), true, rows)
