"""Which index is chosen, and which strings are refused."""

from __future__ import annotations

import pytest

from rayvec.errors import UserError
from rayvec.indexing import spec


@pytest.mark.parametrize(
    ("count", "dim", "factory"),
    [
        (1, 4, "Flat"),
        (57_000, 64, "Flat"),
        (57_000, 256, "Flat"),
        (57_000, 1024, "IVF955,Flat"),
        (1_000_000, 768, "IVF4000,Flat"),
        (10_000_000, 1024, "IVF12649_HNSW32,SQ8"),
        (5_000, 4096, "IVF128,Flat"),  # 4·√n would be 283: too few vectors to learn so many centroids from
    ],
)
def test_auto_chooses_by_count_and_dimension(count: int, dim: int, factory: str) -> None:
    assert spec.choose("auto", count, dim).factory == factory


def test_auto_says_why() -> None:
    assert "exactly" in spec.choose("auto", 1000, 64).why
    assert "955 ≈ 4·√n" in spec.choose("auto", 57_000, 1024).why


@pytest.mark.parametrize(
    ("factory", "kind", "codec", "centroids", "links"),
    [
        ("Flat", "flat", "Flat", 0, 0),
        ("SQ8", "flat", "SQ8", 0, 0),
        ("IVF64,Flat", "ivf", "Flat", 64, 0),
        ("IVF64,SQ8", "ivf", "SQ8", 64, 0),
        ("IVF64_HNSW32,SQ8", "ivf", "SQ8", 64, 32),
        ("HNSW32", "hnsw", "Flat", 0, 32),
        ("HNSW16,SQ8", "hnsw", "SQ8", 0, 16),
    ],
)
def test_an_explicit_string_is_taken_apart(factory: str, kind: str, codec: str, centroids: int, links: int) -> None:
    chosen = spec.choose(factory, 10_000, 64)
    assert (chosen.kind, chosen.codec, chosen.centroids, chosen.links) == (kind, codec, centroids, links)


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        ("IVF64,PQ16x5", "choose one of auto"),
        ("flat", "choose one of auto"),
        ("", "choose one of auto"),
        ("PCA64,Flat", "set dimensions=N"),
        ("IVF0,Flat", "at least 1 centroid"),
        ("HNSW1", "choose 2 to 256"),
        ("HNSW9999", "choose 2 to 256"),
        ("IVF64_HNSW0,Flat", "choose 2 to 256"),
    ],
)
def test_a_string_that_we_do_not_build_is_refused_with_the_cure(factory: str, names: str) -> None:
    with pytest.raises(UserError, match=names):
        spec.check_factory(factory)


def test_more_centroids_than_vectors_is_refused_and_a_usual_number_is_named() -> None:
    with pytest.raises(UserError, match=r"at least 4096 vectors.*there are 1000.*IVF25,Flat"):
        spec.choose("IVF4096,Flat", 1000, 64)


def test_no_vectors_is_refused() -> None:
    with pytest.raises(UserError, match="0 rows"):
        spec.choose("auto", 0, 64)


def test_the_sample_fits_in_memory_but_has_a_vector_for_each_centroid() -> None:
    chosen = spec.choose("IVF40000,Flat", 100_000_000, 16_384)
    assert chosen.samples(100_000_000, 16_384) * 16_384 * 4 <= spec.MOST_SAMPLE_BYTES
    assert chosen.samples(100_000_000, 16_384) >= 40_000


def test_kinds_that_need_no_training_take_no_sample() -> None:
    assert spec.choose("Flat", 1000, 64).samples(1000, 64) == 0
    assert spec.choose("HNSW32", 1000, 64).samples(1000, 64) == 0
