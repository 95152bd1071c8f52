"""Vectors out of parts: ranges, samples, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import VerificationError
from rayvec.indexing.vectors import Part, check_part, parts_of, read_rows, read_vectors, runs, sample_rows, slices
from tests.artifacts import random_vectors, texts_for, write_embeddings

COUNT, DIM = 730, 8
VECTORS = random_vectors(COUNT, DIM)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    folder = write_embeddings(tmp_path_factory.mktemp("embeddings"), VECTORS, texts_for(COUNT), parts=3)
    dataset = EmbeddingsDataset.open(str(folder))
    return parts_of(dataset.part_uris, dataset.parts)


def read(parts: list[Part], start: int, stop: int) -> np.ndarray:
    batches = list(read_vectors(slices(parts, start, stop), DIM, normalize=False))
    return np.concatenate(batches) if batches else np.empty((0, DIM), np.float32)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 730), (0, 1), (99, 101), (240, 250), (243, 243), (729, 730), (100, 600)]
)
def test_any_range_of_rows_is_read_across_parts_and_row_groups(parts: list[Part], start: int, stop: int) -> None:
    assert np.array_equal(read(parts, start, stop), VECTORS[start:stop])


def test_rows_of_a_part_are_read_by_their_numbers_in_the_index(parts: list[Part]) -> None:
    rows = np.array([0, 250, 251, 400, 729])
    found = [read_rows([part], rows, DIM, normalize=False) for part in parts]
    assert np.array_equal(np.concatenate(found), VECTORS[rows])


def test_a_sample_is_uniform_and_never_the_first() -> None:
    counts = np.zeros(50)
    for seed in range(2000):
        counts[sample_rows(50, 10, seed)] += 1
    assert abs(counts / 2000 - 0.2).max() < 0.05  # five standard deviations of a share of 0.2


def test_a_sample_avoids_rows_while_others_are_left() -> None:
    avoid = np.arange(0, 100, 2)
    assert (sample_rows(100, 50, seed=1, avoid=avoid) % 2 == 1).all()
    assert len(sample_rows(100, 60, seed=1, avoid=avoid)) == 60


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    assert np.array_equal(sample_rows(1000, 20, seed=3), sample_rows(1000, 20, seed=3))
    assert not np.array_equal(sample_rows(1000, 20, seed=3), sample_rows(1000, 20, seed=4))


def test_a_part_of_another_size_is_refused_by_name(parts: list[Part]) -> None:
    part = parts[1]
    with pytest.raises(VerificationError, match=Path(part.uri).name):
        check_part(Part(part.uri, part.bytes + 1, part.sha256, part.rows, part.start))


def test_a_part_with_fewer_rows_than_its_manifest_says_is_refused(parts: list[Part]) -> None:
    part = parts[1]
    with pytest.raises(VerificationError, match=f"holds {part.rows} rows where its manifest says {part.rows + 1}"):
        check_part(Part(part.uri, part.bytes, part.sha256, part.rows + 1, part.start))


def test_vectors_of_another_dimension_are_refused(parts: list[Part]) -> None:
    with pytest.raises(VerificationError, match="of 8 dimensions, not 9"):
        next(read_vectors(slices(parts, 0, 1), 9, normalize=False))


def test_zero_vectors_are_refused_where_they_would_be_normalised(tmp_path: Path) -> None:
    vectors = VECTORS[:20].copy()
    vectors[11] = 0
    dataset = EmbeddingsDataset.open(str(write_embeddings(tmp_path, vectors, texts_for(20), parts=1)))
    zeros = slices(parts_of(dataset.part_uris, dataset.parts), 0, 20)
    with pytest.raises(VerificationError, match="zero vectors"):
        list(read_vectors(zeros, DIM, normalize=True))
    assert len(next(read_vectors(zeros, DIM, normalize=False))) == 20


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e19, 1e38])
def test_vectors_of_any_length_are_brought_to_length_one(tmp_path: Path, size: float) -> None:
    vectors = VECTORS[:20] / np.linalg.norm(VECTORS[:20], axis=1, keepdims=True)
    scaled = vectors.copy()
    scaled[7] *= np.float32(size)
    dataset = EmbeddingsDataset.open(str(write_embeddings(tmp_path, scaled, texts_for(20), parts=1)))
    parts = parts_of(dataset.part_uris, dataset.parts)
    batches = list(read_vectors(slices(parts, 0, 20), DIM, normalize=True))
    assert np.allclose(np.concatenate(batches), vectors, atol=1e-6)
    some = np.array([2, 7, 11])
    assert np.array_equal(read_rows(parts, some, DIM, normalize=True), np.concatenate(batches)[some])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, value: float, normalize: bool) -> None:
    vectors = VECTORS[:20].copy()
    vectors[11, 3] = value
    dataset = EmbeddingsDataset.open(str(write_embeddings(tmp_path, vectors, texts_for(20), parts=1)))
    parts = parts_of(dataset.part_uris, dataset.parts)
    with pytest.raises(VerificationError, match="not finite"):
        list(read_vectors(slices(parts, 0, 20), DIM, normalize=normalize))
    with pytest.raises(VerificationError, match="not finite"):
        read_rows(parts, np.arange(20), DIM, normalize=normalize)


@pytest.mark.parametrize(("dtype", "floor"), [("float16", 0.9999), ("int8", 0.999), ("binary", 0.5)])
def test_vectors_of_any_type_are_read_as_floats_of_the_same_direction(tmp_path: Path, dtype: str, floor: float) -> None:
    dataset = EmbeddingsDataset.open(str(write_embeddings(tmp_path, VECTORS, texts_for(COUNT), dtype=dtype)))
    stored = read(parts_of(dataset.part_uris, dataset.parts), 0, COUNT)
    assert stored.dtype == np.float32
    cosines = (stored * VECTORS).sum(axis=1) / np.linalg.norm(stored, axis=1)
    assert floor < cosines.min() < 1


def without(parts: Path, gone: np.ndarray) -> list[Part]:
    dataset = EmbeddingsDataset.open(str(parts))
    return parts_of(dataset.part_uris, dataset.parts, gone)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_rows_that_are_left_out_leave_no_gap(tmp_path: Path, share: float) -> None:
    folder = write_embeddings(tmp_path, VECTORS, texts_for(COUNT), parts=3)
    generator = np.random.default_rng(0)
    gone = np.sort(generator.choice(COUNT, int(share * COUNT), replace=False))
    kept = np.delete(VECTORS, gone, axis=0)
    parts = without(folder, gone)
    for part in parts:
        check_part(part)
    assert parts[-1].stop == len(kept)
    for _ in range(20):
        start, stop = sorted(generator.integers(0, len(kept) + 1, 2).tolist())
        assert np.array_equal(read(parts, start, stop), kept[start:stop])
    rows = np.sort(generator.choice(len(kept), min(20, len(kept)), replace=False))
    found = [read_rows([part], rows, DIM, normalize=False) for part in parts]
    assert np.array_equal(np.concatenate(found), kept[rows])


def test_a_part_of_which_every_row_is_left_out_is_not_read(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path, VECTORS, texts_for(COUNT), parts=2)
    parts = without(folder, np.arange(365))
    assert [(part.start, part.rows) for part in parts] == [(0, 365)]
    assert np.array_equal(read(parts, 0, 365), VECTORS[365:])


def test_runs_of_rows_are_read_and_nothing_between(parts: list[Part]) -> None:
    rows = np.array([3, 4, 5, 242, 243, 244, 700])
    pieces = runs(parts, rows)
    assert sum(piece.stop - piece.start for piece in pieces) == len(rows)
    found = np.concatenate(list(read_vectors(pieces, DIM, normalize=False)))
    assert np.array_equal(found, VECTORS[rows])
    assert runs(parts, rows[:0]) == []
