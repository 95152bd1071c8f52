"""The advisor on a real, small Ray: what it measures, what it recommends, and that its command builds just that."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.index import command
from pipelines._advise_config import AdviseConfig
from pipelines._trials import documents_once
from pipelines.advise import _questions, advise, render
from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import MismatchError, UserError
from rayvec.indexing import versions
from rayvec.indexing.vectors import unit
from tests.artifacts import random_vectors, texts_for, write_embeddings

pytestmark = pytest.mark.usefixtures("ray_cluster")

COUNT, DIM = 1500, 48
# Little is said beyond the first directions, as by an encoder: PCA loses less than truncation.
ROTATION = np.linalg.qr(np.random.default_rng(5).standard_normal((DIM, DIM)))[0]
SPREAD = (np.arange(1, DIM + 1) ** -0.8)[:, None] * ROTATION
VECTORS = unit((np.random.default_rng(1).standard_normal((COUNT, DIM)) @ SPREAD).astype(np.float32))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), VECTORS, texts_for(COUNT))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty queries, each near one document, the judges' answer to it; a folder and a file beside it."""
    folder = tmp_path_factory.mktemp("questions")
    near = VECTORS[:1000:50] + 0.02 * random_vectors(20, DIM, seed=7)
    write_embeddings(folder / "queries", unit(near), texts_for(20), parts=2)
    lines = [f"doc-{i}\tdoc-{50 * i}\t1" for i in range(20)]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines, "doc-x\tdoc-3\t1"]) + "\n")
    return folder


def config(embeddings: Path, output: Path, **changes: Any) -> AdviseConfig:
    small = {"dims": (24, 8), "factories": ("Flat", "SQ8", "IVF{centroids},SQ8"), "sample": 1000}
    return AdviseConfig(embeddings=str(embeddings), output=str(output)).replace(**{**small, **changes})


@pytest.fixture(scope="module")
def report(embeddings: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    judged = {"queries": str(questions / "queries"), "qrels": str(questions / "qrels.tsv")}
    factories = ("Flat", "SQ8", "IVF{centroids},SQ8", "IVF1200,Flat")
    return advise(config(embeddings, tmp_path_factory.mktemp("advice"), factories=factories, **judged))


def point(report: dict[str, Any], way: str, dimensions: int, template: str) -> dict[str, Any]:
    wanted = (way, dimensions, template)
    return next(p for p in report["points"] if (p["way"], p["dimensions"], p["template"]) == wanted)


def test_every_point_of_the_grid_is_measured_and_a_failure_ends_nothing(report: dict[str, Any]) -> None:
    assert len(report["points"]) == 5 * 3  # all dimensions, and two numbers two ways
    assert len(report["failed"]) == 5 and "needs at least 1200 vectors" in report["failed"][0]["error"]
    for row in report["points"]:
        assert row["queries_per_second"] > 0 and 0 < row["recall"] <= 1 and 0 <= row["ndcg"] <= 1


def test_exact_search_in_all_dimensions_is_the_measure(report: dict[str, Any]) -> None:
    whole = point(report, "", DIM, "Flat")
    assert whole["recall"] == 1.0 and whole["ndcg"] > 0.95
    assert whole["bytes_per_vector"] == pytest.approx(4 * DIM, rel=0.02)
    assert point(report, "pca", 24, "Flat")["recall"] > point(report, "truncate", 24, "Flat")["recall"] + 0.05


def test_judged_documents_are_in_the_sample(report: dict[str, Any]) -> None:
    assert report["judged_queries"] == 20 and 1000 < report["sample"] <= 1020


def test_the_recommendation_is_the_smallest_that_is_good_enough(report: dict[str, Any]) -> None:
    best = report["recommended"]
    good = [row for row in report["points"] if row["recall"] >= 0.95]
    assert report["reached"] and best in good
    assert best["bytes_per_vector"] <= 1.1 * min(row["bytes_per_vector"] for row in good)


def test_pareto_rows_are_those_that_nothing_beats(report: dict[str, Any]) -> None:
    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = [(a[k] * s, b[k] * s) for k, s in COSTS]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    COSTS = (("bytes_per_vector", 1), ("recall", -1), ("queries_per_second_of_all", -1))
    rows = report["points"]
    assert [row["pareto"] for row in rows] == [not any(beats(other, row) for other in rows) for row in rows]


def test_the_files_say_the_same(report: dict[str, Any]) -> None:
    folder = Path(report["output"])
    assert storage.read_json(folder / "advice.json") == report
    page = (folder / "advice.md").read_text()
    assert report["next"] in page and report["next"] in render(report)
    assert page.count("★") > 1 and "not measured: 48  IVF1200,Flat" in page
    for name in ("advice.png", "dimensions.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_command_builds_what_was_recommended(embeddings: Path, tmp_path: Path) -> None:
    chosen = config(embeddings, tmp_path, factories=("IVF{centroids},SQ8",), recall_target=0.8, ways=("pca",))
    report = advise(chosen.replace(dims=(24,)))
    words = shlex.split(report["next"])
    assert words[:5] == ["python", "-m", "jobs.index", "--recipe", "tiny.index"]
    done = CliRunner().invoke(command, words[3:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = versions.read_manifest(versions.version_folder(tmp_path / "index"))
    best = report["recommended"]
    assert (manifest["factory"], manifest["dim_index"]) == (best["factory"], best["dimensions"])
    assert manifest["proof"]["recall"] >= 0.8


def test_a_target_that_nothing_reaches_is_said(embeddings: Path, tmp_path: Path) -> None:
    report = advise(config(embeddings, tmp_path, factories=("SQ8",), dims=(8,), ways=("truncate",), recall_target=1.0))
    assert not report["reached"] and report["recommended"]["recall"] == max(row["recall"] for row in report["points"])
    assert "No point reaches recall@10 ≥ 1.0" in render(report)


def test_the_flag_takes_what_a_recipe_of_the_index_has(embeddings: Path, tmp_path: Path) -> None:
    settings = [f"embeddings={embeddings}", f"output={tmp_path}", "factories=[SQ8]", "sample=300", "seed=3"]
    words = [word for setting in settings for word in ("--set", setting)]
    for start in (["--advise", "--recipe", "hash.index"], ["--recipe", "hash.advise"], ["--set", "kind=advise"]):
        done = CliRunner().invoke(command, [*start, *words, "--dry-run"], catch_exceptions=False)
        found = AdviseConfig.from_yaml(_written(tmp_path / "c.yaml", done.output))
        assert (found.sample, found.factories, found.seed) == (300, ("SQ8",), 3)


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_queries_of_another_encoder_are_a_mismatch(embeddings: Path, questions: Path, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "other", VECTORS[:20], texts_for(20), weights="another")
    with pytest.raises(MismatchError, match="weights"):
        advise(config(embeddings, tmp_path, queries=str(tmp_path / "other"), qrels=str(questions / "qrels.tsv")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dims": (48,)}, "the vectors have 48"),
        ({"factories": ("auto",)}, "name the forms"),
        ({"factories": ("IVF,PQ",)}, "choose one of"),
        ({"output": ""}, "output is required"),
        ({"qrels": "q.tsv"}, "needs queries too"),
        ({"queries": "q"}, "needs qrels too"),
    ],
)
def test_what_cannot_be_tried_is_refused_with_the_cure(
    embeddings: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        advise(config(embeddings, tmp_path).replace(**changes))


def test_judgements_of_nothing_here_are_refused(embeddings: Path, questions: Path, tmp_path: Path) -> None:
    for name, lines in {"queries": "nobody\tdoc-1\t1", "documents": "doc-1\tnowhere\t1"}.items():
        (tmp_path / f"{name}.tsv").write_text(lines + "\n")
        judged = {"queries": str(questions / "queries"), "qrels": str(tmp_path / f"{name}.tsv")}
        with pytest.raises(UserError, match="check that the ids are the same"):
            advise(config(embeddings, tmp_path / "out", **judged))


def test_questions_are_drawn_from_those_that_are_there(embeddings: Path, questions: Path, tmp_path: Path) -> None:
    absent = "".join(f"absent-{i}\tdoc-1\t1\n" for i in range(200))
    (tmp_path / "qrels.tsv").write_text((questions / "qrels.tsv").read_text() + absent)
    judged = {"queries": str(questions / "queries"), "qrels": str(tmp_path / "qrels.tsv")}
    found = _questions(config(embeddings, tmp_path, max_queries=15, **judged), EmbeddingsDataset.open(embeddings))
    assert len(found.ids) == 15


def test_queries_that_are_documents_do_not_find_themselves(embeddings: Path, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "queries", VECTORS[:20], texts_for(20))
    nearest = np.argsort(-VECTORS[:20] @ VECTORS.T, axis=1)[:, 1]
    (tmp_path / "qrels.tsv").write_text("".join(f"doc-{i}\tdoc-{row}\t1\n" for i, row in enumerate(nearest)))
    judged = {"queries": str(tmp_path / "queries"), "qrels": str(tmp_path / "qrels.tsv")}
    report = advise(config(embeddings, tmp_path / "out", dims=(8,), factories=("Flat",), ways=("truncate",), **judged))
    assert point(report, "", DIM, "Flat")["ndcg"] == 1.0
    assert report["sample"] <= 1020


def test_of_a_documents_windows_the_best_counts() -> None:
    names = ["a", "a", "b", "c", "b"]
    found = np.array([[4, 1, 0, 2, 3], [3, -1, -1, -1, -1]])
    assert documents_once(found, names).tolist() == [[4, 1, 3, -1, -1], [3, -1, -1, -1, -1]]
