"""Every kind of index: size foretold, dropped rows stay away, pieces make the same index, strangers are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import VerificationError
from rayvec.indexing import gpu, layers, shards, spec
from rayvec.indexing.effort import Effort
from rayvec.indexing.estimate import estimate
from rayvec.indexing.segments import local
from rayvec.indexing.shards import Shard
from tests.artifacts import random_vectors

COUNT, DIM = 2100, 32
VECTORS = random_vectors(COUNT, DIM)
QUERIES = random_vectors(6, DIM, seed=5)
KINDS = (
    "Flat", "SQ8", "SQ6", "SQ4", "SQfp16", "SQbf16", "RaBitQ", "RaBitQ4", "RR32,RaBitQ2", "SQ4,RFlat",
    "IVF16,Flat", "IVF16,SQ8", "IVF16,SQfp16", "IVF16_HNSW8,SQ8", "IVF16,PQ4", "IVF16_HNSW8,PQ8x4fs",
    "IVF16,PQ16x4fsr", "IVF16,PQ16x4fs,RFlat", "OPQ8_16,IVF16,PQ8x4fs,Refine(SQ8)", "IVF16,SQ8,Refine(SQfp16)",
    "IVF16,RaBitQ", "IVF16_HNSW8,RaBitQ5", "IVF16,RaBitQfs", "IVF16,RaBitQfs4", "RR32,IVF16,RaBitQ,Refine(SQ8)",
    "RR32,IVF16_HNSW8,RaBitQfs2,Refine(SQfp16)", "HNSW16", "HNSW8,SQ8", "HNSW8,SQ4,RFlat",
)  # fmt: skip
#: Those that hold a vector closely enough that everything is searched and the order is the true one.
FULL = Effort(nprobe=16, ef_search=COUNT, k_factor=64)


def trained(factory: str) -> tuple[spec.Spec, np.ndarray]:
    shards.use_threads(1)
    chosen = spec.choose(factory, COUNT, DIM)
    return chosen, shards.train(chosen, DIM, VECTORS, seed=0)


def read(path: Path) -> Shard:
    return Shard.read(path, start=0, rows=COUNT, dim=DIM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind, named by its place in KINDS."""
    place = tmp_path_factory.mktemp("kinds")
    for number, factory in enumerate(KINDS):
        _, empty = trained(factory)
        shards.fill(empty, [VECTORS[:1000], VECTORS[1000:]], place / str(number))
    return place


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    return request.param, folder / str(KINDS.index(request.param))


def test_the_estimate_is_within_10_percent_of_the_file(kind: tuple[str, Path]) -> None:
    factory, path = kind
    assert estimate(spec.choose(factory, COUNT, DIM), COUNT, DIM).bytes == pytest.approx(path.stat().st_size, rel=0.1)


def test_what_is_refined_with_does_not_count_as_memory(folder: Path) -> None:
    refined, plain = (estimate(spec.choose(f, COUNT, DIM), COUNT, DIM) for f in ("IVF16,SQ8,RFlat", "IVF16,SQ8"))
    assert refined.resident == plain.resident == plain.bytes == refined.bytes - 4 * COUNT * DIM


@pytest.mark.parametrize("k", [1, 10, 900, COUNT])
def test_a_dropped_row_never_comes_back_and_k_live_ones_do(kind: tuple[str, Path], k: int) -> None:
    shard = read(kind[1])
    best = shard.search(QUERIES, 5, FULL).rows
    dropped = np.union1d(best.ravel(), np.arange(0, COUNT, 3))
    for effort in (FULL, Effort()):
        found = shard.search(QUERIES, k, effort, dropped)
        assert found.rows.shape == (len(QUERIES), min(k, COUNT - len(dropped)))
        assert not np.isin(found.rows, dropped).any()
        for rows in found.rows:
            assert len(set(rows.tolist())) == len(rows) and rows.min() >= 0
        assert np.isfinite(found.scores).all()


def test_without_dropped_rows_the_best_come_back(kind: tuple[str, Path]) -> None:
    shard = read(kind[1])
    rows = np.arange(0, COUNT, 100)
    dropped = rows[:7]
    assert not np.isin(shard.search(VECTORS[rows], 3, FULL, dropped).rows, dropped).any()
    again = shard.search(VECTORS[rows], 300, FULL).rows
    assert all(row in found for row, found in zip(rows, again.tolist(), strict=True))


def test_all_rows_may_be_dropped(kind: tuple[str, Path]) -> None:
    assert read(kind[1]).search(QUERIES, 3, FULL, np.arange(COUNT)).rows.shape == (len(QUERIES), 0)


def test_dropped_rows_are_counted_over_all_shards(tmp_path: Path) -> None:
    _, empty = trained("IVF16,SQ8")
    parts = []
    for number, (start, stop) in enumerate([(0, 800), (800, COUNT)]):
        shards.fill(empty, [VECTORS[start:stop]], tmp_path / str(number))
        parts.append(Shard.read(tmp_path / str(number), start=start, rows=stop - start, dim=DIM))
    full = shards.search(parts, QUERIES, COUNT, FULL)
    dropped = np.sort(full.rows[0, ::2])
    found = shards.search(parts, QUERIES[:1], COUNT, FULL, [local(dropped, part.start, part.count) for part in parts])
    assert found.rows[0].tolist() == full.rows[0, 1::2].tolist()


@pytest.mark.parametrize("factory", [kind for kind in KINDS if not kind.startswith("HNSW")])
def test_pieces_merged_in_order_find_what_one_piece_finds(factory: str, folder: Path, tmp_path: Path) -> None:
    _, empty = trained(factory)
    bounds = [0, 700, 701, 1500, COUNT]
    pieces = [tmp_path / str(start) for start in bounds[:-1]]
    for start, stop, path in zip(bounds[:-1], bounds[1:], pieces, strict=True):
        shards.fill(empty, [VECTORS[start:stop]], path)
    assert shards.merge(pieces, tmp_path / "whole") == COUNT
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    a, b = read(tmp_path / "whole"), read(folder / str(KINDS.index(factory)))
    for effort in (FULL, Effort(nprobe=2, k_factor=3)):
        x, y = a.search(QUERIES, 30, effort), b.search(QUERIES, 30, effort)
        assert np.allclose(x.scores, y.scores, atol=1e-5)
        assert np.mean(x.rows == y.rows) > 0.99  # what ties with another may change places


@pytest.mark.parametrize("factory", ["IVF16_HNSW8,SQ8", "RR32,IVF16_HNSW8,RaBitQ2", "IVF16,PQ8x4fs"])
def test_training_gives_the_same_bytes_on_any_number_of_threads(factory: str) -> None:
    chosen = spec.choose(factory, COUNT, DIM)
    found = []
    for threads in (1, 2):
        shards.use_threads(threads)
        found.append(shards.train(chosen, DIM, VECTORS, seed=0))
    assert np.array_equal(*found)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16_HNSW8,SQ8", "RR32,IVF16,RaBitQ4,Refine(SQ8)"])
def test_vectors_whose_lists_were_found_beforehand_make_the_same_index(factory: str, tmp_path: Path) -> None:
    # What a GPU does: here the centroids' exact index stands on the CPU.
    _, empty = trained(factory)
    index = layers.faiss.deserialize_index(empty)
    nearest = gpu.centroids(layers.inner(index))
    layers.add(index, VECTORS, partial(gpu.add, nearest=nearest))
    layers.faiss.write_index(index, str(tmp_path / "added"))
    shards.fill(empty, [VECTORS], tmp_path / "filled")
    found = [read(tmp_path / name).search(QUERIES, 20, FULL) for name in ("added", "filled")]
    assert np.array_equal(found[0].rows, found[1].rows)


def test_a_few_vectors_in_many_lists_of_product_codes_are_read(tmp_path: Path) -> None:
    chosen = spec.choose("IVF400,PQ16x4fsr", COUNT, DIM)
    shards.fill(shards.train(chosen, DIM, VECTORS, seed=0), [VECTORS[:10]], tmp_path / "file")
    assert Shard.read(tmp_path / "file", start=0, rows=10, dim=DIM).search(QUERIES, 10, FULL).rows.shape == (6, 10)


def test_reading_a_small_file_does_not_bound_what_is_read_next(tmp_path: Path) -> None:
    _, empty = trained("Flat")
    shards.fill(empty, [VECTORS[:1]], tmp_path / "small")
    shards.fill(empty, [VECTORS], tmp_path / "large")
    Shard.read(tmp_path / "small", start=0, rows=1, dim=DIM)
    assert shards.merge([tmp_path / "large", tmp_path / "small"], tmp_path / "whole") == COUNT + 1


def foreign(path: Path, factory: str) -> None:
    """A file of an index that FAISS builds and we do not; LSH has no inner product, so it is wrapped by hand."""
    faiss = layers.faiss
    if "LSH" in factory:
        base = faiss.IndexLSH(DIM, 16)
        index = base if factory == "LSH" else faiss.IndexRefineFlat(base)
    else:
        index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add(VECTORS)
    faiss.write_index(index, str(path))


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        ("LSH", "of a kind"),
        ("PQ4x4fs", "of a kind"),
        ("RR32,PQ4x4fs", "holds IndexPQFastScan"),
        ("PCA16,Flat", "holds PCAMatrix"),
        ("RR32,RR32,SQ8", "2 transforms"),
        ("SQ8,Refine(RaBitQ)", "holds IndexRaBitQ"),
        ("LSH,RFlat", "holds IndexLSH"),
        ("IVF16(IVF4,Flat),Flat", "holds IndexIVFFlat"),
    ],
)
def test_a_foreign_layer_is_refused_wherever_it_stands(factory: str, names: str, tmp_path: Path) -> None:
    foreign(tmp_path / "file", factory)
    with pytest.raises(VerificationError, match=names):
        read(tmp_path / "file")


def test_a_layer_of_another_metric_is_refused(tmp_path: Path) -> None:
    index = layers.faiss.IndexFlatL2(DIM)
    index.add(VECTORS)
    layers.faiss.write_index(index, str(tmp_path / "file"))
    with pytest.raises(VerificationError, match="of a kind that rayvec builds"):
        read(tmp_path / "file")
