from __future__ import annotations

import numpy as np
import pytest

from rayvec.evaluation import exact
from rayvec.evaluation.exact import ExactSearch, shortened


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_give_what_one_sort_gives(batch: int) -> None:
    rng = np.random.default_rng(0)
    # Coarse values, so that many scores are equal.
    queries, vectors = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (5, 60))
    search = ExactSearch(queries, k=20)
    for start in range(0, len(vectors), batch):
        search.add(vectors[start : start + batch])
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :20]
    assert search.rows_QK.tolist() == expected.tolist()


def test_many_vectors_at_once_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_SCORES", 100)
    rng = np.random.default_rng(0)
    queries, vectors = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (5, 400))
    search, sizes = ExactSearch(queries, k=7), list[int]()
    taken = search._add
    monkeypatch.setattr(search, "_add", lambda piece: (sizes.append(len(piece)), taken(piece)))
    search.add(vectors)
    assert sizes == [20] * 20
    assert search.rows_QK.tolist() == np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :7].tolist()


def test_fewer_vectors_than_k_give_fewer_results() -> None:
    search = ExactSearch(np.eye(2, dtype=np.float32), k=10)
    search.add(np.eye(2, dtype=np.float32))
    assert search.rows_QK.shape == (2, 2)


def test_shortened_vectors_have_length_one_again() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 5]], dtype=np.float32)
    assert shortened(vectors, 2) == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
