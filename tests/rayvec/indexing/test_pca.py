"""PCA by summed moments against numpy's SVD, and its file."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import UserError, VerificationError
from rayvec.indexing import pca
from rayvec.indexing.pca import Moments
from rayvec.indexing.vectors import unit
from tests.artifacts import random_vectors

VECTORS = random_vectors(700, 24) + np.float32(0.3)  # a mean far from zero, as language models have


def test_the_directions_are_those_of_numpys_svd() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=False)
    _, _, directions = np.linalg.svd(VECTORS.astype(np.float64), full_matrices=False)
    assert np.abs(projection.matrix @ directions[:6].T) == pytest.approx(np.eye(6), abs=1e-4)


def test_what_comes_out_is_what_the_svd_gives_up_to_sign() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=False)
    left, singular, _ = np.linalg.svd(VECTORS.astype(np.float64), full_matrices=False)
    assert np.abs(projection(VECTORS)) == pytest.approx(np.abs(left[:, :6] * singular[:6]), abs=1e-4)


def test_explained_variance_is_that_of_what_comes_out() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=False)
    shares = np.cumsum(projection(VECTORS).var(axis=0)) / VECTORS.var(axis=0).sum()
    assert projection.explained == pytest.approx(shares, rel=1e-4)


def test_inner_products_are_kept_better_than_without_the_mean() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=False)
    mean = VECTORS.mean(axis=0)
    _, _, directions = np.linalg.svd(VECTORS - mean, full_matrices=False)
    centred = (VECTORS - mean) @ directions[:6].T

    def error(values: np.ndarray) -> float:
        return float(np.abs(values @ values.T - VECTORS @ VECTORS.T).mean())

    assert error(projection(VECTORS)) < 0.5 * error(centred)


def scatter_of(vectors: np.ndarray) -> np.ndarray:
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    return centred.T @ centred


@pytest.mark.parametrize("cuts", [[], [1], [350], [1, 2, 3, 699], list(range(7, 700, 7))])
def test_moments_in_pieces_are_those_of_all_in_float64(cuts: list[int]) -> None:
    together = reduce(Moments.__add__, [pca.moments([piece]) for piece in np.split(VECTORS, cuts)])
    batches = pca.moments(np.split(VECTORS, cuts))
    scatter = scatter_of(VECTORS)
    for found in (together, batches):
        assert found.count == len(VECTORS)
        assert found.mean == pytest.approx(VECTORS.mean(axis=0, dtype=np.float64), abs=1e-6)
        assert np.abs(found.scatter - scatter).max() < 3e-6 * scatter.max()  # float32 products
        assert found.scatter == pytest.approx(found.scatter.T, rel=1e-12, abs=1e-12)


def test_float32_products_are_carried_into_float64_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "BLOCK_ROWS", 64)
    scatter = scatter_of(VECTORS)
    assert np.abs(pca.moments([VECTORS]).scatter - scatter).max() < 1e-6 * scatter.max()


def test_moments_do_not_lose_a_small_spread_about_a_large_mean() -> None:
    far = (VECTORS.astype(np.float64) + 1e3).astype(np.float32)
    scatter = scatter_of(far)
    assert np.abs(pca.moments(np.array_split(far, 9)).scatter - scatter).max() < 1e-6 * scatter.max()


def test_normalised_vectors_come_out_at_length_one() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=True)
    assert np.linalg.norm(projection(VECTORS), axis=1) == pytest.approx(np.ones(len(VECTORS)), abs=1e-6)


def test_all_dimensions_keep_all_distances() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 24, normalize=False)
    assert projection.explained[-1] == pytest.approx(1.0)
    before = np.linalg.norm(VECTORS[:50] - VECTORS[50:100], axis=1)
    after = np.linalg.norm(projection(VECTORS[:50]) - projection(VECTORS[50:100]), axis=1)
    assert after == pytest.approx(before, rel=1e-4)


def test_the_file_is_a_faiss_transform_that_gives_the_same_vectors(tmp_path: Path) -> None:
    import faiss

    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=True)
    pca.save(projection, tmp_path / "transform.faiss")
    again = pca.load(tmp_path / "transform.faiss", normalize=True)
    assert np.array_equal(again(VECTORS), projection(VECTORS))
    transform = faiss.read_VectorTransform(str(tmp_path / "transform.faiss"))
    assert unit(transform.apply(VECTORS)) == pytest.approx(projection(VECTORS), abs=1e-5)


def test_another_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "transform.faiss").write_bytes(b"PcAm" + bytes(100))
    with pytest.raises(VerificationError, match=r"transform\.faiss is not a linear transform"):
        pca.load(tmp_path / "transform.faiss", normalize=True)


@pytest.mark.parametrize(("dimensions", "says"), [(25, "have 24"), (0, "choose 1 to 24")])
def test_more_dimensions_than_there_are_is_refused(dimensions: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pca.fit(pca.moments([VECTORS]), dimensions, normalize=True)


def test_more_dimensions_than_vectors_is_refused() -> None:
    with pytest.raises(UserError, match="only 5 vectors"):
        pca.fit(pca.moments([VECTORS[:5]]), 10, normalize=True)


def test_whitened_directions_count_alike() -> None:
    projection = pca.fit(pca.moments([VECTORS]), 6, normalize=False, whiten=True)
    assert projection(VECTORS).std(axis=0) == pytest.approx(np.ones(6), rel=1e-3)
    plain = pca.fit(pca.moments([VECTORS]), 6, normalize=False)
    assert np.ptp(plain(VECTORS).std(axis=0)) > 0.01  # without whitening they do not
    assert projection.explained == plain.explained


@pytest.mark.parametrize("whiten", [False, True])
def test_constant_vectors_give_finite_vectors(whiten: bool) -> None:
    same = np.ones((50, 8), np.float32)
    projection = pca.fit(pca.moments([same]), 3, normalize=True, whiten=whiten)
    assert np.isfinite(projection(same)).all() and projection.explained == (0.0, 0.0, 0.0)


def test_whitening_fewer_vectors_than_dimensions_does_not_blow_up_rounding_errors() -> None:
    few = VECTORS[:6]  # they span five directions; the sixth is rounding error alone
    projection = pca.fit(pca.moments([few]), 6, normalize=False, whiten=True)
    assert np.abs(projection(few)).max() < 10
    assert np.abs(projection(few)[:, 5]).max() < 0.01


def test_truncation_keeps_the_first_dimensions_at_length_one() -> None:
    projection = pca.truncation(24, 5, normalize=True)
    assert np.array_equal(projection(VECTORS), unit(VECTORS[:, :5]))
    with pytest.raises(UserError, match="choose 1 to 24"):
        pca.truncation(24, 25, normalize=True)


def test_a_truncation_is_a_faiss_transform_like_any_other(tmp_path: Path) -> None:
    import faiss

    projection = pca.truncation(24, 5, normalize=True)
    pca.save(projection, tmp_path / "transform.faiss")
    again = pca.load(tmp_path / "transform.faiss", normalize=True)
    assert again.cuts and np.array_equal(again(VECTORS), projection(VECTORS))
    transform = faiss.read_VectorTransform(str(tmp_path / "transform.faiss"))
    assert np.array_equal(transform.apply(VECTORS), VECTORS[:, :5])


def test_a_pca_is_no_truncation() -> None:
    assert not pca.fit(pca.moments([VECTORS]), 6, normalize=True).cuts
