"""Recall with ties, the bisection to a target, exact search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import VerificationError
from rayvec.indexing import proof, shards, spec
from rayvec.indexing.ranking import Ranking
from rayvec.indexing.shards import Shard
from tests.artifacts import random_vectors

OWN = np.array([100])


def ranking(rows: list[int], scores: list[float] | None = None) -> Ranking:
    values = scores or [1.0 - 0.1 * place for place in range(len(rows))]
    return Ranking(np.array([rows], dtype=np.int64), np.array([values], dtype=np.float32))


def test_recall_is_the_share_of_the_true_nearest_found() -> None:
    assert proof.recall(ranking([1, 9, 3]), ranking([1, 2, 3]), OWN, k=3) == pytest.approx(2 / 3)


def test_the_query_itself_counts_for_nothing() -> None:
    assert proof.recall(ranking([100, 1, 2]), ranking([100, 1, 3]), OWN, k=2) == pytest.approx(1 / 2)


def test_whatever_ties_with_the_last_true_place_counts_as_found() -> None:
    truth = ranking([1, 2, 3, 4], [0.9, 0.5, 0.5, 0.1])
    assert proof.recall(ranking([1, 3]), truth, OWN, k=2) == 1.0
    assert proof.recall(ranking([1, 4]), truth, OWN, k=2) == 0.5


def test_fewer_documents_than_k_are_all_that_can_be_found() -> None:
    assert proof.recall(ranking([100, 1]), ranking([100, 1]), OWN, k=10) == 1.0
    assert proof.recall(ranking([100]), ranking([100]), OWN, k=10) == 1.0


@pytest.mark.parametrize(("target", "effort"), [(0.001, 1), (0.5, 50), (0.501, 51), (1.0, 100)])
def test_tuning_finds_the_least_effort(target: float, effort: int) -> None:
    assert proof.tune(lambda value: value / 100, most=100, target=target) == (effort, effort / 100)


def test_tuning_a_target_out_of_reach_says_what_to_change() -> None:
    with pytest.raises(VerificationError, match=r"recall@10 is 0\.800 at most.*lower recall_target"):
        proof.tune(lambda value: 0.8, most=100, target=0.9)


def test_exact_search_in_batches_is_numpys() -> None:
    vectors, queries = random_vectors(500, 16), random_vectors(7, 16, seed=2)
    batches = [(start, vectors[start : start + 60]) for start in range(0, 500, 60)]
    found = shards.exact(batches, queries, k=20)
    assert np.array_equal(found.rows, np.argsort(-(queries @ vectors.T), axis=1)[:, :20])


def written(folder: Path, factory: str, vectors: np.ndarray, start: int) -> Shard:
    trained = shards.train(spec.choose(factory, len(vectors), vectors.shape[1]), vectors.shape[1], vectors, seed=0)
    shards.fill(trained, [vectors], folder / f"shard-{start}")
    return Shard.read(folder / f"shard-{start}", start=start, rows=len(vectors), dim=vectors.shape[1])


def updated(folder: Path, factory: str) -> tuple[list[Shard], list[np.ndarray | None]]:
    """A base of which a third is dropped, and a delta."""
    vectors = random_vectors(2000, 16)
    base, delta = written(folder, factory, vectors[:1800], 0), written(folder, "Flat", vectors[1800:], 1800)
    return [base, delta], [np.arange(0, 1800, 3), None]


def test_an_updated_index_is_measured_against_all_that_it_stores(tmp_path: Path) -> None:
    parts, dropped = updated(tmp_path, "IVF32,Flat")
    result = proof.prove_again(parts, dropped, 16, {"nprobe": 32}, 0.95, seed=0)
    assert (result["search"], result["recall"]) == ({"nprobe": 32}, 1.0)
    assert 60 < result["queries"] <= proof.UPDATE_QUERIES  # a third of those drawn were dropped
    narrow = proof.prove_again(parts, dropped, 16, {"nprobe": 1}, 0.1, seed=0)
    assert narrow["search"] == {"nprobe": 1} and 0.1 < narrow["recall"] < 0.95


@pytest.mark.parametrize("factory", ["IVF32,Flat", "HNSW8"])
def test_a_search_that_misses_the_target_is_made_wider(tmp_path: Path, factory: str) -> None:
    parts, dropped = updated(tmp_path, factory)
    before = {"nprobe": 1} if factory.startswith("IVF") else {"ef_search": 1}
    result = proof.prove_again(parts, dropped, 16, before, 0.95, seed=0)
    assert result["recall"] >= 0.95 and max(result["search"].values()) > 1


def test_where_every_vector_is_compared_there_is_nothing_to_measure(tmp_path: Path) -> None:
    parts, dropped = updated(tmp_path, "SQ8")
    assert proof.prove_again(parts, dropped, 16, {}, 0.95, seed=0) == {"search": {}}


def test_of_a_large_index_some_shards_are_drawn_and_every_delta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = random_vectors(1200, 16)
    parts = [written(tmp_path, "IVF8,Flat", vectors[i : i + 200], i) for i in range(0, 1000, 200)]
    parts.append(written(tmp_path, "Flat", vectors[1000:], 1000))
    monkeypatch.setattr(proof, "UPDATE_VALUES", 2 * 200 * 16)
    dropped: list[np.ndarray | None] = [None] * 5 + [np.arange(3)]
    drawn = [shard.start for shard, _ in proof._drawn(parts, dropped, 16, seed=1)]
    assert drawn[-1] == 1000 and 1 <= len(drawn) - 1 <= 2
    dropped[-1] = np.arange(200)
    assert 1000 not in [shard.start for shard, _ in proof._drawn(parts, dropped, 16, seed=1)]
    assert proof.prove_again(parts, dropped, 16, {"nprobe": 8}, 0.95, seed=1)["recall"] == 1.0
