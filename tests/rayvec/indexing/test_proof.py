"""Recall with ties, the bisection to a target, exact search."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.errors import VerificationError
from rayvec.indexing import proof, shards
from rayvec.indexing.ranking import Ranking
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
