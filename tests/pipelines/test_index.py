"""The index pipeline on a real, small Ray: from parts on disk to a proved, live version."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.index import IndexConfig, index
from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import ConcurrentWriterError, MismatchError, UserError, VerificationError
from rayvec.fingerprint import Fingerprint
from rayvec.indexing import build, reducing, shards, spec, tasks, versions
from rayvec.indexing.corpus import Corpus
from rayvec.indexing.searcher import Index
from rayvec.indexing.tasks import Clock
from rayvec.indexing.vectors import unit
from tests.artifacts import fingerprint, random_vectors, texts_for, write_embeddings

pytestmark = pytest.mark.usefixtures("ray_cluster")

COUNT, DIM = 1500, 32
VECTORS = random_vectors(COUNT, DIM)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), VECTORS, texts_for(COUNT))


def config(embeddings: Path, output: Path, **changes: Any) -> IndexConfig:
    return IndexConfig(embeddings=str(embeddings), output=str(output)).replace(**changes)


def flip(path: Path, position: int = -200) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_a_flat_index_finds_what_numpy_finds(embeddings: Path, tmp_path: Path) -> None:
    report = index(config(embeddings, tmp_path))
    assert (report["factory"], report["recall@10"], report["documents"]) == ("Flat", 1.0, COUNT)
    opened = Index.open(tmp_path, threads=1)
    queries = random_vectors(30, DIM, seed=3)
    assert np.array_equal(opened.dense(queries, k=10).rows, np.argsort(-(queries @ VECTORS.T), axis=1)[:, :10])
    assert opened.documents([1499])[0]["id"] == "doc-1499"
    assert opened.lexical(["number1234"], k=1).rows.tolist() == [[1234]]
    assert opened.lexical(["doc-77 title"], k=1).rows.tolist() == [[77]]


def test_an_ivf_index_reaches_its_target_with_the_least_probes(embeddings: Path, tmp_path: Path) -> None:
    report = index(config(embeddings, tmp_path, factory="IVF64,Flat", recall_target=0.9, shards=3))
    assert 0.9 <= report["recall@10"] < 1.0
    assert 1 <= report["search"]["nprobe"] < 64
    opened = Index.open(tmp_path, threads=1)
    near = np.random.default_rng(4).choice(COUNT, 200, replace=False)
    queries = unit(VECTORS[near] + 0.02 * random_vectors(200, DIM, seed=4))
    exact = np.argsort(-(queries @ VECTORS.T), axis=1)[:, :10]
    found = opened.dense(queries, k=10).rows
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.8
    assert [shard["rows"] for shard in opened.manifest["shards"]] == [500, 500, 500]


def test_a_graph_is_searched_as_wide_as_the_target_asks(embeddings: Path, tmp_path: Path) -> None:
    report = index(config(embeddings, tmp_path, factory="HNSW8", recall_target=0.97, lexical=False))
    assert report["recall@10"] >= 0.97
    assert report["search"]["ef_search"] >= 1
    assert not Index.open(tmp_path).has_lexical


def test_pca_is_fitted_over_all_parts_and_proved_against_the_full_vectors(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reducing, "SAMPLES_A_DIMENSION", COUNT)
    report = index(config(embeddings, tmp_path, dimensions=16))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("index: warning: ")]
    assert len(told) == 1 and "16 of 32 dimensions" in told[0] and "set more dimensions" in told[0]
    opened = Index.open(tmp_path, threads=1)
    assert (opened.dim, report["dimensions"]) == (DIM, 16)
    _, _, directions = np.linalg.svd(VECTORS, full_matrices=False)
    kept = (VECTORS @ directions[:16].T).var(axis=0).sum() / VECTORS.var(axis=0).sum()
    assert report["explained_variance"] == pytest.approx(kept, rel=1e-4)
    assert report["recall@10"] == 1.0 and 0.3 < report["recall@10_of_reduction"] < 1.0
    assert opened.dense(VECTORS[::100], k=1).rows[:, 0].tolist() == list(range(0, COUNT, 100))


def test_whitening_and_truncation_are_projections_like_pca(embeddings: Path, tmp_path: Path) -> None:
    index(config(embeddings, tmp_path / "white", dimensions=16, whiten=True, lexical=False))
    index(config(embeddings, tmp_path / "cut", dimensions=16, reduce="truncate", lexical=False))
    white, cut = Index.open(tmp_path / "white", threads=1), Index.open(tmp_path / "cut", threads=1)
    assert white.prepared(VECTORS).std(axis=0) == pytest.approx(np.full(16, 0.25), rel=0.25)  # about 1 / √16 each
    assert cut.prepared(VECTORS) == pytest.approx(unit(VECTORS[:, :16]), abs=1e-6)
    for opened in (white, cut):
        assert opened.dense(VECTORS[::100], k=1).rows[:, 0].tolist() == list(range(0, COUNT, 100))
    assert white.manifest["transform"]["whiten"] and cut.manifest["transform"]["kind"] == "truncate"


def test_a_reduced_build_tells_what_other_numbers_of_dimensions_would_keep(tmp_path: Path) -> None:
    vectors = random_vectors(600, 96, clusters=40)
    write_embeddings(tmp_path / "in", vectors, texts_for(600))
    report = index(config(tmp_path / "in", tmp_path / "out", dimensions=64, lexical=False))
    recalls = report["recall@10_in_dimensions"]
    assert set(recalls) == {"pca", "pca+whiten", "truncate"} and set(recalls["pca"]) == {"64"}
    assert recalls["pca"]["64"] == pytest.approx(report["recall@10_of_reduction"], abs=0.03)
    assert (tmp_path / "out" / "dimensions.png").read_bytes().startswith(b"\x89PNG")


def test_axes_of_a_sample_are_near_those_of_all(monkeypatch: pytest.MonkeyPatch, embeddings: Path) -> None:
    dataset = EmbeddingsDataset.open(str(embeddings))
    corpus = Corpus.of(dataset)
    monkeypatch.setattr(reducing, "SAMPLES_A_DIMENSION", COUNT)
    whole = reducing.axes(corpus)
    monkeypatch.setattr(reducing, "SAMPLES_A_DIMENSION", 20)
    some = reducing.axes(corpus)
    assert (whole.count, some.count) == (COUNT, 20 * DIM)
    assert some.explained[:16] == pytest.approx(whole.explained[:16], abs=0.05)
    assert reducing.axes(corpus).squares == pytest.approx(some.squares, rel=1e-12)  # the same sample again


def test_codes_are_refined_with_stored_vectors_until_the_target_is_reached(embeddings: Path, tmp_path: Path) -> None:
    report = index(config(embeddings, tmp_path, factory="RR32,IVF16,RaBitQ,RFlat", recall_target=0.97, lexical=False))
    assert report["recall@10"] >= 0.97
    assert set(report["search"]) == {"nprobe", "k_factor"} and report["search"]["k_factor"] > 1
    opened = Index.open(tmp_path, threads=1)
    assert opened.dense(VECTORS[::50], k=1).rows[:, 0].tolist() == list(range(0, COUNT, 50))
    estimated, actual = report["cost"]["estimated"], report["cost"]["actual"]
    assert estimated["bytes"] == pytest.approx(actual["bytes"], rel=0.1)
    assert estimated["cpu_seconds"] > 0 and actual["cpu_seconds"] > 0 and actual["resident"] > 0, report["cost"]


def test_codes_too_coarse_for_the_target_publish_nothing(embeddings: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"under the target 0\.95: nothing was published.*refinement"):
        index(config(embeddings, tmp_path, factory="IVF16,RaBitQ", lexical=False))


def test_recall_is_proved_for_the_users_queries_too(embeddings: Path, tmp_path: Path) -> None:
    queries = write_embeddings(tmp_path / "queries", random_vectors(40, DIM, seed=8), texts_for(40), parts=2)
    report = index(config(embeddings, tmp_path / "out", factory="IVF64,Flat", queries=str(queries), lexical=False))
    proof = Index.open(tmp_path / "out").manifest["proof"]
    assert proof["recall"] >= 0.95 and proof["recall_of_queries"] >= 0.95
    assert report["recall@10_of_queries"] == proof["recall_of_queries"]
    # These are further from the data than its own vectors: they ask for more lists.
    alone = index(config(embeddings, tmp_path / "alone", factory="IVF64,Flat", lexical=False))
    assert report["search"]["nprobe"] > alone["search"]["nprobe"]


def test_queries_of_another_encoder_are_refused(embeddings: Path, tmp_path: Path) -> None:
    queries = write_embeddings(tmp_path / "queries", VECTORS[:9], texts_for(9), weights="other")
    with pytest.raises(MismatchError, match="weights"):
        index(config(embeddings, tmp_path / "out", queries=str(queries)))


def test_a_memory_budget_chooses_the_codes(embeddings: Path, tmp_path: Path) -> None:
    report = index(config(embeddings, tmp_path, memory_budget="45kB", lexical=False))
    assert report["factory"].startswith("RR32,IVF38,RaBitQ") and "of a budget of 45 kB" in report["why"]
    assert report["recall@10"] >= 0.95


@pytest.mark.parametrize(
    "factory", ["IVF16_HNSW8,SQ8,RFlat", "RR32,IVF16,RaBitQ2", "OPQ8,IVF16,PQ8x4fs", "IVF16,RaBitQfs2"]
)
def test_pieces_filled_apart_make_the_same_shards_however_many_cpus(
    factory: str, embeddings: Path, tmp_path: Path
) -> None:
    corpus = Corpus.of(EmbeddingsDataset.open(str(embeddings)))
    chosen = spec.choose(factory, corpus.count, corpus.dim)
    trained, sample = build.train(corpus, chosen, 0, Clock())
    entries = build.fill(corpus, chosen, trained, 2, tmp_path, Clock(), piece_bytes=40_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == [entry["file"] for entry in entries]
    assert [(entry["start"], entry["rows"]) for entry in entries] == [(0, 750), (750, 750)]
    # One process, one thread, one piece after the other: what a single CPU would do.
    alone = build._train(corpus, chosen, sample, 0, 1)
    assert np.array_equal(alone, trained)
    for entry in entries:
        cuts = build._pieces(corpus, chosen, entry["start"], entry["start"] + entry["rows"], 40_000)
        paths = [tmp_path / str(start) for start, _ in cuts]
        for (start, stop), path in zip(cuts, paths, strict=True):
            build._fill(corpus, alone, start, stop, path, 1)
        assert len(paths) > 1 and shards.merge(paths, tmp_path / "alone") == entry["rows"]
        files = tmp_path / "alone", tmp_path / entry["file"]
        a, b = (shards.Shard.read(path, start=0, rows=entry["rows"], dim=DIM) for path in files)
        x, y = (shard.search(VECTORS[:200], 50, shard.effort(16, 4)) for shard in (a, b))
        assert np.array_equal(x.rows, y.rows) and np.array_equal(x.scores, y.scores)
        # What fills up a block of fast scan is whatever was in memory.
        assert chosen.fast_scan or files[0].read_bytes() == files[1].read_bytes()


def test_float16_parts_are_read(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "in", VECTORS[:300], texts_for(300), parts=1, dtype="float16")
    index(config(tmp_path / "in", tmp_path / "out"))
    assert Index.open(tmp_path / "out").dense(VECTORS[:5], k=1).rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_one_document_makes_an_index(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "in", VECTORS[:1], texts_for(1), parts=2)  # and one of its parts is empty
    assert index(config(tmp_path / "in", tmp_path / "out"))["documents"] == 1
    assert Index.open(tmp_path / "out").dense(VECTORS[:1], k=10).rows.tolist() == [[0]]


def test_the_fingerprint_and_the_dataset_are_in_the_manifest(embeddings: Path, tmp_path: Path) -> None:
    index(config(embeddings, tmp_path, lexical=False))
    opened = Index.open(tmp_path)
    assert opened.fingerprint == fingerprint(DIM)
    assert Fingerprint.parse(opened.manifest["fingerprint"]).short == fingerprint(DIM).short
    (source,) = opened.segments[0].sources
    assert source.manifest_sha256 == storage.sha256_file(embeddings / "manifests" / "v1.json")
    assert opened.columns == ("id", "title", "text", "line")


def test_the_report_and_the_configuration_lie_beside_it(embeddings: Path, tmp_path: Path) -> None:
    chosen = config(embeddings, tmp_path, lexical=False)
    report = index(chosen)
    assert storage.read_json(tmp_path / "report.json") == report
    assert IndexConfig.from_yaml(tmp_path / "config.yaml") == chosen


def test_the_same_build_again_is_not_done_again(embeddings: Path, tmp_path: Path) -> None:
    chosen = config(embeddings, tmp_path, lexical=False)
    assert [index(chosen)["reused"], index(chosen)["reused"]] == [False, True]
    assert index(chosen.replace(seed=1))["version"] == "v2"
    assert index(chosen.replace(seed=1, rebuild=True))["version"] == "v3"


def test_a_damaged_version_is_built_again(embeddings: Path, tmp_path: Path) -> None:
    chosen = config(embeddings, tmp_path, lexical=False)
    index(chosen)
    flip(tmp_path / "versions" / "v1" / "documents.parquet")
    assert index(chosen)["version"] == "v2"
    assert Index.open(tmp_path).count == COUNT


def test_a_part_with_a_flipped_bit_is_refused_and_the_live_version_stays(embeddings: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(embeddings, tmp_path / "in"))
    index(config(damaged, tmp_path / "out", lexical=False))
    part = sorted((damaged / "data").iterdir())[1]
    flip(part, 500)
    with pytest.raises(VerificationError, match=part.name):
        index(config(damaged, tmp_path / "out", lexical=False, rebuild=True))
    assert versions.list_versions(tmp_path / "out") == ["v1"] and Index.open(tmp_path / "out").count == COUNT


def test_a_target_that_cannot_be_reached_publishes_nothing(tmp_path: Path) -> None:
    # Differences far below what 8 bits of this range can tell apart.
    close = random_vectors(1, DIM) + 1e-4 * np.random.default_rng(0).standard_normal((400, DIM)).astype(np.float32)
    close[0] = -close[0]
    write_embeddings(tmp_path / "in", close.astype(np.float32), texts_for(400))
    with pytest.raises(VerificationError, match=r"under the target 1\.0: nothing was published"):
        index(config(tmp_path / "in", tmp_path / "out", factory="SQ8", recall_target=1.0))
    with pytest.raises(UserError, match="holds no index"):
        Index.open(tmp_path / "out")


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = VECTORS[:50].copy()
    bad[7, 3] = np.nan
    write_embeddings(tmp_path / "in", bad, texts_for(50))
    with pytest.raises(VerificationError, match="not finite"):
        index(config(tmp_path / "in", tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"factory": "IVF4096,Flat"}, "needs at least 4096 vectors"),
        ({"dimensions": 64}, "the vectors have 32"),
        ({"dimensions": 64, "reduce": "truncate"}, "the vectors have 32"),
        ({"whiten": True}, "set dimensions=N"),
        ({"whiten": True, "dimensions": 8, "reduce": "truncate"}, "is a part of PCA"),
        ({"lexical_columns": ["body"]}, "set lexical=false"),
        ({"output": ""}, "output is required"),
        ({"embeddings": ""}, "embeddings is required"),
        ({"embeddings": "nowhere"}, "no finished embeddings"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_cure(
    embeddings: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        index(config(embeddings, tmp_path).replace(**changes))
    assert versions.list_versions(tmp_path) == []


def test_tasks_that_need_this_machine_s_folders_run_here_beside_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    everywhere = (tasks.cluster_cpus(), tasks.node_cpus())
    with tasks.on_this_node():
        assert tasks.one(_node) == ray.get_runtime_context().get_node_id()
        assert (tasks.cluster_cpus(), tasks.node_cpus()) == everywhere
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # a submitted driver may hold a CPU
        assert tasks.node_cpus() == everywhere[1] - 1
    assert tasks.node_cpus() == everywhere[1]
    small = [{**node, "Resources": {"CPU": 1.0}} for node in ray.nodes()]
    monkeypatch.setattr(ray, "nodes", lambda: small)
    with pytest.raises(UserError, match="--entrypoint-num-cpus 1"):
        tasks.require_this_node()


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


@pytest.mark.parametrize("rebuild", [True, False])
def test_the_folder_of_embeddings_is_no_place_for_an_index(tmp_path: Path, rebuild: bool) -> None:
    write_embeddings(tmp_path, VECTORS[:8], [f"text {row}" for row in range(8)])
    before = storage.list_tree(tmp_path)
    with pytest.raises(UserError, match="holds embeddings, not an index"):
        index(config(tmp_path, tmp_path).replace(rebuild=rebuild))
    assert storage.list_tree(tmp_path) == before


def test_embeddings_of_nothing_are_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "in", VECTORS[:0], [])
    with pytest.raises(UserError, match="0 rows"):
        index(config(tmp_path / "in", tmp_path / "out"))


def test_a_build_beside_another_is_refused(embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "WAIT_S", 0)
    with versions.writing(tmp_path), pytest.raises(ConcurrentWriterError):
        index(config(embeddings, tmp_path))


def test_every_snowball_stemmer_may_be_named_and_no_other() -> None:
    assert IndexConfig.parse({"stemmer": "finnish"}).stemmer == "finnish"
    assert IndexConfig.parse({"stemmer": None}).stemmer is None
    with pytest.raises(UserError, match="no Snowball stemmer 'klingon'; there are arabic"):
        IndexConfig.parse({"stemmer": "klingon"})
