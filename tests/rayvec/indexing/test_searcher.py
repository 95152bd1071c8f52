"""Searching an index: right answers, refused queries, and no damaged file ever read."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import UserError, VerificationError
from rayvec.indexing import drafts, versions
from rayvec.indexing.searcher import Index
from rayvec.indexing.segments import Segment
from rayvec.indexing.vectors import unit
from tests.artifacts import fingerprint, random_vectors, texts_for, write_index

COUNT, DIM = 600, 32
VECTORS = random_vectors(COUNT, DIM)
QUERIES = random_vectors(20, DIM, seed=5)
FACTORIES = ["Flat", "SQ8", "SQfp16", "IVF16,Flat", "IVF16,SQ8", "IVF16_HNSW8,SQ8", "HNSW16", "HNSW16,SQ8"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of different vectors: v1 flat in two shards, v2 (live) IVF."""
    output = tmp_path_factory.mktemp("index")
    write_index(output, random_vectors(COUNT, DIM, seed=9), texts_for(COUNT), pieces=2)
    write_index(output, VECTORS, texts_for(COUNT), factory="IVF16,Flat", pieces=2, search={"nprobe": 16})
    return output


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture(scope="module")
def index(built: Path) -> Iterator[Index]:
    yield Index.open(built, threads=1)


def exact(queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(unit(queries) @ VECTORS.T), axis=1, kind="stable")[:, :k]


def test_a_full_probe_over_shards_is_exact_search(index: Index) -> None:
    found = index.dense(QUERIES, k=10)
    assert np.array_equal(found.rows, exact(QUERIES, 10))
    assert found.scores == pytest.approx(np.take_along_axis(QUERIES @ VECTORS.T, found.rows, axis=1), abs=1e-5)


def test_the_length_of_a_query_does_not_matter(index: Index) -> None:
    assert index.dense(7 * QUERIES, k=3).scores == pytest.approx(index.dense(QUERIES, k=3).scores, abs=1e-5)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("k", [1, COUNT, COUNT + 1, 10**9, 2**31 - 1])
def test_k_gives_k_rows_or_all_of_them_and_never_an_empty_place(factory: str, k: int, tmp_path: Path) -> None:
    write_index(tmp_path, VECTORS, texts_for(COUNT), factory=factory, pieces=2, search={})
    found = Index.open(tmp_path, threads=1).dense(QUERIES[:2], k=k)
    assert found.rows.shape == (2, min(k, COUNT))
    for rows in found.rows:
        assert len(set(rows.tolist())) == len(rows) and rows.min() >= 0 and rows.max() < COUNT
    assert np.isfinite(found.scores).all() and (np.diff(found.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None, "3"])
def test_a_k_below_one_or_no_number_is_refused(index: Index, k: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        index.dense(QUERIES, k=k)


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (np.full((1, DIM), np.nan), "not finite"),
        (np.full((1, DIM), np.inf), "not finite"),
        (np.zeros((1, DIM)), "is zero"),
        (np.ones((2, DIM - 1)), r"\[queries, 32\]"),
        (np.ones(DIM), r"\[queries, 32\]"),
        (np.ones((1, 1, DIM)), r"\[queries, 32\]"),
    ],
)
def test_a_query_that_means_nothing_is_refused(index: Index, vectors: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        index.dense(vectors, k=1)


def test_one_bad_query_among_good_ones_is_refused_too(index: Index) -> None:
    with pytest.raises(UserError, match="is zero"):
        index.dense(np.concatenate([QUERIES, np.zeros((1, DIM))]), k=1)


def test_no_queries_give_an_empty_ranking(index: Index) -> None:
    assert index.dense(np.empty((0, DIM)), k=3).rows.shape == (0, 3)


def test_the_projection_is_applied_to_queries(tmp_path: Path) -> None:
    write_index(tmp_path, VECTORS, texts_for(COUNT), dimensions=12)
    index = Index.open(tmp_path, threads=1)
    assert (index.dim, index.manifest["dim_index"]) == (DIM, 12)
    assert index.dense(VECTORS[:50], k=1).rows[:, 0].tolist() == list(range(50))


def test_queries_are_cut_as_the_documents_were(tmp_path: Path) -> None:
    write_index(tmp_path, unit(VECTORS[:, :12]), texts_for(COUNT), made_by=fingerprint(DIM))
    index = Index.open(tmp_path, threads=1)
    whole, cut = (index.dense(queries, k=3) for queries in (VECTORS[:50], VECTORS[:50, :12]))
    assert whole.rows.tolist() == cut.rows.tolist()
    assert whole.rows[:, 0].tolist() == list(range(50))
    np.testing.assert_allclose(whole.scores[:, 0], 1, atol=1e-5)
    with pytest.raises(UserError, match="takes \\[queries, 12\\]"):
        index.dense(VECTORS[:1, :13], k=1)


def test_lexical_search_is_over_the_same_rows(index: Index) -> None:
    found = index.lexical(["document number37", "path join"], k=2)
    assert found.rows[0, 0] == 37
    assert set(found.rows[1] % 4) == {0}


def test_documents_come_in_the_order_asked_with_their_payload(index: Index) -> None:
    documents = index.documents([599, 0, 4, 0])
    assert [document["id"] for document in documents] == ["doc-599", "doc-0", "doc-4", "doc-0"]
    assert documents[2] == {"id": "doc-4", "title": None, "text": texts_for(5)[4], "line": 4}


def test_documents_of_one_column(index: Index) -> None:
    assert index.documents(np.array([3, 300]), columns=["id"]) == [{"id": "doc-3"}, {"id": "doc-300"}]
    assert index.documents([]) == []


@pytest.mark.parametrize("rows", [[-1], [COUNT], [0, 2**40]])
def test_a_row_that_is_not_there_is_refused(index: Index, rows: list[int]) -> None:
    with pytest.raises(UserError, match="between 0 and 599"):
        index.documents(rows)


def test_an_unknown_column_is_refused(index: Index) -> None:
    with pytest.raises(UserError, match="unknown column 'embedding'"):
        index.documents([0], columns=["id", "embedding"])


def test_versions_are_opened_by_name(built: Path) -> None:
    assert Index.open(built).version == "v2"
    assert Index.open(built, "v1").version == "v1"
    with pytest.raises(UserError, match="no version 'v3'"):
        Index.open(built, "v3")


def test_an_open_index_outlives_its_removal(copy: Path) -> None:
    index = Index.open(copy, "v1", threads=1)
    versions.prune(copy, keep=1)
    assert index.dense(QUERIES, k=1).rows.shape == (20, 1)
    assert index.lexical(["path"], k=1).rows.shape == (1, 1)


def test_threads_may_search_and_read_at_once(index: Index) -> None:
    expected = index.dense(QUERIES, k=5).rows
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            rows = index.dense(QUERIES[number : number + 1], k=5).rows
            ids = [document["line"] for document in index.documents(rows[0])]
            if ids != expected[number].tolist():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_dense_search_lets_other_threads_run(tmp_path: Path) -> None:
    vectors = random_vectors(20_000, DIM)
    write_index(tmp_path, vectors, ["word"] * len(vectors))
    index = Index.open(tmp_path, threads=1)
    counted, done = 0, threading.Event()

    def search() -> None:
        index.dense(vectors[:4000], k=10)
        done.set()

    thread = threading.Thread(target=search)
    thread.start()
    while not done.is_set():
        counted += 1
    thread.join()
    assert counted > 100


# ---- files that are not what the manifest says ----


def files_of(output: Path) -> list[Path]:
    return sorted(path for path in (output / "versions" / "v2").rglob("*") if path.is_file())


def test_200_flipped_bits_are_all_refused_with_the_files_name(copy: Path) -> None:
    generator = random.Random(7)
    files = files_of(copy)
    assert {"shard-00001.faiss", "documents.parquet", "manifest.json", "vocab.index.json"} <= {p.name for p in files}
    for number in range(200):
        path = files[number % len(files)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(bad))
        with pytest.raises(VerificationError, match=path.name.replace(".", r"\.")):
            Index.open(copy)
        path.write_bytes(good)
    assert Index.open(copy).count == COUNT


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_truncated_file_is_refused_with_its_name(copy: Path, share: float) -> None:
    for path in files_of(copy):
        good = path.read_bytes()
        path.write_bytes(good[: int(len(good) * share)])
        with pytest.raises(VerificationError, match=path.name.replace(".", r"\.")):
            Index.open(copy)
        path.write_bytes(good)


def test_a_missing_file_is_refused_with_its_name(copy: Path) -> None:
    for path in files_of(copy):
        good = path.read_bytes()
        path.unlink()
        with pytest.raises(VerificationError, match=path.name.replace(".", r"\.")):
            Index.open(copy)
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["shard-00000.faiss", "documents.parquet", "lexical/vocab.index.json"])
def test_a_file_of_another_build_is_refused(copy: Path, name: str) -> None:
    shutil.copy(copy / "versions" / "v1" / name, copy / "versions" / "v2" / name)
    if name.startswith("shard"):
        with pytest.raises(VerificationError, match=r"shard-00000\.faiss"):
            Index.open(copy)
    else:  # the two builds have equal documents: equal bytes are no damage
        assert Index.open(copy).count == COUNT


def test_a_whole_version_under_another_name_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "versions" / "v2")
    shutil.copytree(copy / "versions" / "v1", copy / "versions" / "v2")
    with pytest.raises(VerificationError, match="is of version v1, not v2"):
        Index.open(copy)


def test_an_index_type_that_we_do_not_build_is_refused(tmp_path: Path) -> None:
    import faiss

    with drafts.new_version(tmp_path) as draft:
        foreign = faiss.IndexLSH(DIM, 64)
        foreign.add(VECTORS)
        faiss.write_index(foreign, str(draft.folder / "shard-00000.faiss"))
        draft.commit(manifest_of(VECTORS))
    with pytest.raises(VerificationError, match=r"shard-00000\.faiss is not a FAISS index of a kind"):
        Index.open(tmp_path)


def test_a_manifest_sealed_over_the_wrong_count_is_refused(tmp_path: Path) -> None:
    import faiss

    with drafts.new_version(tmp_path) as draft:
        flat = faiss.IndexFlatIP(DIM)
        flat.add(VECTORS[:-1])
        faiss.write_index(flat, str(draft.folder / "shard-00000.faiss"))
        draft.commit(manifest_of(VECTORS))
    with pytest.raises(VerificationError, match="holds 599 vectors of 32 dimensions where its manifest says 600"):
        Index.open(tmp_path)


def manifest_of(vectors: np.ndarray) -> dict[str, object]:
    from tests.artifacts import fingerprint

    return {
        "count": len(vectors), "dim": DIM, "dim_index": DIM, "normalize": True, "transform": None, "search": {},
        "shards": [{"file": "shard-00000.faiss", "start": 0, "rows": len(vectors)}], "lexical": None,
        "segments": [Segment("", 0, len(vectors), ()).to_json()], "fingerprint": fingerprint(DIM).model_dump(),
    }  # fmt: skip
