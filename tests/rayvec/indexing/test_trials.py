"""Trials on a sample: fewer dimensions against all, and an index built, tuned and measured."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.indexing import grid, pca, reductions, trials
from rayvec.indexing.samples import Sample, sample_of
from rayvec.indexing.vectors import unit
from tests.artifacts import random_vectors

COUNT, DIM = 1200, 48
OWN = np.arange(0, COUNT, 20, dtype=np.int64)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return sample_of(random_vectors(COUNT, DIM, clusters=COUNT), OWN, random_vectors(5, DIM, seed=9))


def brute_recall(vectors: np.ndarray, sample: Sample) -> float:
    def top(values: np.ndarray) -> np.ndarray:
        scores = values[OWN] @ values.T
        scores[np.arange(len(OWN)), OWN] = -2
        return np.argsort(-scores, axis=1)[:, :10]

    pairs = zip(top(vectors), top(sample.vectors), strict=True)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]))


def test_kept_recall_is_that_of_numpy(sample: Sample) -> None:
    axes = reductions.axes_of(sample)
    kept = {
        (row.way, row.dimensions): row for row in reductions.compare(sample, axes, [32, 8], reductions.WAYS, depth=4)
    }
    assert kept["", DIM].recall == 1.0 and len(kept) == 7
    assert kept["truncate", 8].recall == pytest.approx(brute_recall(unit(sample.vectors[:, :8]), sample), abs=0.01)
    for way, whiten in (("pca", False), ("pca+whiten", True)):
        projected = axes.projection(32, normalize=True, whiten=whiten)(sample.vectors)
        assert kept[way, 32].recall == pytest.approx(brute_recall(projected, sample), abs=0.01)
    assert kept["pca", 32].found.shape == (5, 4)


def test_queries_are_not_among_what_axes_are_fitted_on(sample: Sample) -> None:
    seen = pca.axes(pca.moments([np.delete(sample.vectors, OWN, axis=0)]))
    found = reductions.axes_of(sample)
    assert found.count == COUNT - len(OWN) and found.squares == pytest.approx(seen.squares, rel=1e-5)


def test_an_exact_index_finds_everything_in_its_own_bytes(sample: Sample) -> None:
    trial = trials.run(sample, sample.vectors, None, "Flat", COUNT, 0.95, depth=10, seed=0, threads=1)
    assert (trial.recall, trial.search, trial.kind) == (1.0, {}, "flat")
    assert trial.bytes / COUNT == pytest.approx(4 * DIM, rel=0.01)
    assert trial.found.tolist() == np.argsort(-(sample.asked @ sample.vectors.T), axis=1)[:, :10].tolist()


def test_lists_are_probed_as_far_as_the_target_asks(sample: Sample) -> None:
    low, high = (
        trials.run(sample, sample.vectors, None, "IVF{centroids},SQ8", COUNT, target, depth=10, seed=0, threads=1)
        for target in (0.5, 0.97)
    )
    assert low.factory == grid.named("IVF{centroids},SQ8", COUNT, DIM) == "IVF30,SQ8"
    assert 0.5 <= low.recall <= high.recall and high.recall >= 0.97
    assert low.search["nprobe"] < high.search["nprobe"]


def test_where_the_target_is_out_of_reach_it_is_shared_out(sample: Sample) -> None:
    projection = reductions.project("truncate", 8, sample, None)
    trial = trials.run(
        sample, projection(sample.vectors), projection, "IVF{centroids},Flat", COUNT, 0.9, depth=10, seed=0, threads=1
    )
    exact = brute_recall(projection(sample.vectors), sample)
    assert exact < 0.9 and trial.recall >= 0.9 * exact - 0.01
    assert trial.fidelity > trial.recall  # it is truer to its own dimensions than to all
    assert trial.search["nprobe"] < 30


def test_bytes_of_all_count_the_lists_that_all_will_have(sample: Sample) -> None:
    trial = trials.run(sample, sample.vectors, None, "IVF{centroids},SQ8", 1_000_000, 0.9, depth=1, seed=0, threads=1)
    codes, lists = DIM + 8, 4000 * 4 * DIM  # a byte a dimension and an id; centroids
    assert trial.bytes == pytest.approx(1_000_000 * codes + lists, rel=0.03)


def test_what_so_few_vectors_cannot_build_is_the_users_error(sample: Sample) -> None:
    with pytest.raises(UserError, match="needs at least 5000 vectors"):
        trials.run(sample, sample.vectors, None, "IVF5000,Flat", COUNT, 0.9, depth=1, seed=0, threads=1)
