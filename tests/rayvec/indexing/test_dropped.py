"""Shards without some of their rows: FAISS passes them over, whatever the kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayvec.indexing import shards, spec
from rayvec.indexing.shards import Effort, Shard
from rayvec.indexing.vectors import unit
from tests.artifacts import random_vectors

COUNT, DIM = 500, 16
VECTORS = random_vectors(COUNT, DIM)
QUERIES = random_vectors(12, DIM, seed=4)
FACTORIES = ["Flat", "SQ8", "SQfp16", "IVF16,Flat", "IVF16,SQ8", "IVF16_HNSW8,SQ8", "HNSW16", "HNSW16,SQ8"]


def shard(folder: Path, factory: str, start: int = 0) -> Shard:
    trained = shards.train(spec.choose(factory, COUNT, DIM), DIM, VECTORS, seed=0)
    shards.fill(trained, [VECTORS], folder / "shard")
    return Shard.read(folder / "shard", start=start, rows=COUNT, dim=DIM)


def some(count: int, seed: int = 1) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(COUNT, count, replace=False)).astype(np.int64)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("gone", [1, 250, 490, 499])
def test_no_dropped_row_is_found_and_all_others_can_be(tmp_path: Path, factory: str, gone: int) -> None:
    opened, dropped = shard(tmp_path, factory, start=1000), some(gone)
    live = np.setdiff1d(np.arange(COUNT), dropped) + 1000
    for k in (1, 20, COUNT):
        rows = opened.search(QUERIES, k, Effort(nprobe=1, ef_search=4), dropped).rows
        assert rows.shape == (len(QUERIES), min(k, len(live)))
        assert np.isin(rows, live).all()
        assert all(len(set(row.tolist())) == len(row) for row in rows)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "HNSW16"])
def test_an_exhaustive_search_is_exact_over_what_is_live(tmp_path: Path, factory: str) -> None:
    opened, dropped = shard(tmp_path, factory), some(200)
    scores = QUERIES @ VECTORS.T
    scores[:, dropped] = -np.inf
    assert opened.exhaustive(QUERIES, 10, dropped).rows.tolist() == np.argsort(-scores, axis=1)[:, :10].tolist()


def test_a_shard_of_which_nothing_lives_finds_nothing(tmp_path: Path) -> None:
    opened, everything = shard(tmp_path, "Flat"), np.arange(COUNT)
    assert opened.search(QUERIES, 5, Effort(), everything).rows.shape == (len(QUERIES), 0)
    assert opened.exhaustive(QUERIES, 5, everything).rows.shape == (len(QUERIES), 0)


def test_other_rows_may_be_dropped_from_one_search_to_the_next(tmp_path: Path) -> None:
    opened = shard(tmp_path, "Flat")
    first = opened.search(QUERIES, 3, Effort()).rows
    for gone in (np.unique(first[:, 0]), np.unique(first[:, :2]), None):
        found = opened.search(QUERIES, 3, Effort(), gone).rows
        assert not np.isin(found, [] if gone is None else gone).any()
    assert found.tolist() == first.tolist()


@pytest.mark.parametrize("factory", FACTORIES)
def test_stored_vectors_come_with_their_rows(tmp_path: Path, factory: str) -> None:
    rows, vectors = shard(tmp_path, factory, start=7).stored(np.arange(COUNT))
    assert sorted(rows.tolist()) == list(range(7, COUNT + 7))
    np.testing.assert_allclose(vectors, VECTORS[rows - 7], atol=0.02)


def test_stored_vectors_of_product_codes_are_near_those_that_came(tmp_path: Path) -> None:
    """FAISS's own way to give back a vector of fast-scan codes ends the process."""
    for number, factory in enumerate(("IVF16,PQ16x4fs", "OPQ8,IVF16,PQ8x4fs", "IVF16,PQ8")):
        opened = shard(tmp_path, factory, start=7)
        rows, vectors = opened.stored(np.arange(COUNT))
        assert sorted(rows.tolist()) == list(range(7, COUNT + 7)), number
        assert (unit(vectors) * VECTORS[rows - 7]).sum(axis=1).mean() > 0.8
        wanted = np.array([9, 7, 300, 9])
        order = np.argsort(rows)
        np.testing.assert_allclose(opened.vectors(wanted), vectors[order][wanted - 7], atol=1e-6)
