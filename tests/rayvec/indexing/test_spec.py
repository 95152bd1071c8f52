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


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        ("PQ8x4fs", "stand in lists: IVF<centroids>,PQ8x4fs"),
        ("RR64,RaBitQfs,RFlat", "stand in lists: IVF<centroids>,RaBitQfs"),
        ("HNSW32,PQ8", "choose one of auto"),
        ("IVF64,Flat,RFlat", "refines vectors that are whole already"),
        ("OPQ8,IVF64,PQ16", "one M"),
        ("OPQ8,IVF64,SQ8", "one M"),
        ("RR64,HNSW32", "leave it out"),
        ("RR64_32,IVF64,SQ8", "RR takes one number"),
        ("IVF64,PQ0", "at least 1 sub-quantizer"),
        ("IVF64,SQ8,Refine(PQ8)", "choose one of auto"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(factory: str, names: str) -> None:
    with pytest.raises(UserError, match=names):
        spec.check_factory(factory)


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        ("RR32,IVF64,RaBitQ", "write RR64"),
        ("IVF64,PQ48x4fs", "choose a divisor of 64, such as 16"),
        ("OPQ16_128,IVF64,PQ16x4fs", "at most 64"),
    ],
)
def test_what_does_not_fit_the_vectors_is_refused(factory: str, names: str) -> None:
    with pytest.raises(UserError, match=names):
        spec.choose(factory, 10_000, 64)


def test_product_codes_need_vectors_to_learn_from() -> None:
    with pytest.raises(UserError, match="at least 256 vectors"):
        spec.choose("IVF4,PQ16", 100, 64)


def test_all_parts_of_a_string_are_taken_apart() -> None:
    chosen = spec.choose("OPQ16_32,IVF64_HNSW8,PQ16x4fs,Refine(SQfp16)", 10_000, 64)
    assert (chosen.rotation, chosen.blocks, chosen.rotated, chosen.refine) == ("OPQ", 16, 32, "SQfp16")
    assert (chosen.subquantizers, chosen.bits, chosen.code_bytes(64)) == (16, 4, 8)
    assert spec.choose("RR64,IVF64,RaBitQ,RFlat", 10_000, 64).refine == "Flat"


@pytest.mark.parametrize(
    ("budget", "factory"),
    [
        ("5GB", "IVF4000,Flat"),
        ("2GB", "IVF4000_HNSW32,SQfp16"),
        ("800MB", "IVF4000_HNSW32,SQ8"),
        ("450MB", "RR768,IVF4000_HNSW32,RaBitQ4,Refine(SQ8)"),
        ("260MB", "RR768,IVF4000_HNSW32,RaBitQ2,Refine(SQ8)"),
        ("130MB", "RR768,IVF4000_HNSW32,RaBitQ,Refine(SQ8)"),
    ],
)
def test_auto_takes_the_finest_codes_that_the_memory_holds(budget: str, factory: str) -> None:
    chosen = spec.choose("auto", 1_000_000, 768, memory_budget=spec.parse_bytes(budget))
    assert chosen.factory == factory
    assert "of a budget of" in chosen.why


def test_a_high_recall_takes_codes_that_reach_it() -> None:
    assert "SQ8" not in spec.choose("auto", 1_000_000, 768, memory_budget=800_000_000, recall_target=0.98).factory
    assert spec.choose("auto", 10_000_000, 1024, recall_target=0.98).codec == "SQfp16"


def test_a_latency_leaves_out_what_is_too_slow() -> None:
    assert spec.choose("auto", 57_000, 256).factory == "Flat"
    chosen = spec.choose("auto", 57_000, 256, latency_ms=1.0)
    assert chosen.factory == "IVF955,Flat" and "ms a query of 1" in chosen.why


def test_what_nothing_fits_names_the_smallest_and_the_cure() -> None:
    with pytest.raises(UserError, match=r"memory_budget = 50 MB: the smallest index here, RR768.*dimensions=N"):
        spec.choose("auto", 1_000_000, 768, memory_budget=50_000_000)
    with pytest.raises(UserError, match=r"latency_ms = 0\.001: the fastest index here"):
        spec.choose("auto", 1_000_000, 768, latency_ms=0.001)
    with pytest.raises(UserError, match=r"over memory_budget = 1\.0 MB"):
        spec.choose("Flat", 10_000, 64, memory_budget=1_000_000)


@pytest.mark.parametrize("text", ["", "four", "4XB", "-1", "0"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a number of bytes"):
        spec.parse_bytes(text)


def test_more_centroids_than_vectors_is_refused_and_a_usual_number_is_named() -> None:
    with pytest.raises(UserError, match=r"at least 4096 vectors.*there are 1000.*IVF25,Flat"):
        spec.choose("IVF4096,Flat", 1000, 64)


@pytest.mark.parametrize("factory", ["IVF4,PQ5", "IVF4,PQ4x4fs"])
def test_of_too_few_vectors_for_codes_flat_is_named(factory: str) -> None:
    with pytest.raises(UserError, match="there are 3; take Flat"):
        spec.choose(factory, 3, 64)


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
