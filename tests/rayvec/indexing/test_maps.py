"""The map of an index: what is drawn, and where it lies."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.indexing import maps, pca
from rayvec.indexing.searcher import Index
from tests.artifacts import texts_for, write_index

COUNT, DIM = 300, 24


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Vectors that vary most along two known directions, in two pieces, coded as they come."""
    generator = np.random.default_rng(1)
    spread = np.array([3.0, 2.0, *[0.3] * (DIM - 2)])
    vectors = (generator.normal(size=(COUNT, DIM)) * spread + 1.0).astype(np.float32)
    folder = tmp_path_factory.mktemp("maps") / "index"
    write_index(folder, vectors, texts_for(COUNT), pieces=2)
    return Index.open(folder, threads=1)


def test_the_plane_is_the_one_that_keeps_most(index: Index) -> None:
    map_ = maps.draw(index)
    vectors = index.vectors(np.arange(COUNT))
    centred = vectors - vectors.mean(axis=0)
    _, lengths, _ = np.linalg.svd(centred.astype(np.float64))
    shares = lengths**2 / (lengths**2).sum()
    assert map_.explained == pytest.approx(shares[:2].sum(), rel=1e-4)
    variances = map_.points.astype(np.float64).var(axis=0)
    assert variances == pytest.approx(lengths[:2] ** 2 / COUNT, rel=1e-3)
    assert np.abs(map_.points.mean(axis=0)).max() < 1e-5


def test_documents_are_labelled_and_others_are_put_where_they_belong(index: Index) -> None:
    map_ = maps.draw(index, size=100)
    rows = [int(id_.removeprefix("doc-")) for id_ in map_.ids]
    assert len(set(rows)) == 100 and rows != sorted(rows)
    assert map_.titles == [None if row % 5 == 4 else f"title {row}" for row in rows]
    # Hits go through the same projection of the same stored vectors.
    np.testing.assert_allclose(map_.place(index.vectors(rows)), map_.points, atol=1e-6)


def test_every_copy_draws_the_same_map(index: Index) -> None:
    first, second = maps.draw(index, size=50), maps.draw(index, size=50)
    assert first.ids == second.ids and np.array_equal(first.points, second.points)


def test_deleted_documents_are_not_drawn(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "dropped", np.arange(0, COUNT, 2))
    monkeypatch.setattr(index, "count", COUNT // 2)
    rows = maps.live_rows(index, 100, seed=3)
    assert len(rows) == 100 and (rows % 2 == 1).all()
    assert sorted(maps.live_rows(index, 10_000, seed=3)) == list(range(1, COUNT, 2))


def test_of_many_dimensions_the_plane_is_the_same() -> None:
    generator = np.random.default_rng(2)
    vectors = (generator.normal(size=(500, 300)) * np.r_[4.0, 3.0, np.full(298, 0.5)]).astype(np.float32)
    found = pca.plane(vectors)
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    assert np.abs((found.matrix * directions[:2]).sum(axis=1)) == pytest.approx(1.0, abs=1e-4)
    shares = np.cumsum(lengths**2) / (lengths**2).sum()
    assert found.explained == pytest.approx(tuple(shares[:2]), rel=1e-4)


def test_vectors_of_one_dimension_and_vectors_that_do_not_vary_have_a_plane() -> None:
    line = pca.plane(np.array([[1.0], [3.0]], np.float32))
    assert line(np.array([[3.0]], np.float32)).tolist() == [[1.0, 0.0]]
    still = pca.plane(np.ones((5, 3), np.float32))
    assert still.explained == (0.0, 0.0) and np.abs(still(np.ones((1, 3), np.float32))).max() < 1e-6
