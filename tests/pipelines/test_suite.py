"""MTEB's tasks by name on local data, the paper's rows beside ours, and what is said where data is absent."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.measure import command
from pipelines.suite import SuiteConfig, measure_suite, render
from rayvec.errors import UserError

pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")  # mteb's, datasets' and scikit-learn's own

WORDS = ["list", "sort", "vector", "file", "parquet", "socket", "open", "read", "number", "table", "query", "path"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small data in place of three of the suite's fifteen sets."""
    folder = tmp_path_factory.mktemp("local")
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.sample(WORDS, 4))

    (folder / "sts.csv").write_text("".join(f"{text()},{text()},{rng.uniform(0, 5):.2f}\n" for _ in range(40)))
    (folder / "classes").mkdir()
    for part in ("train", "test"):
        rows = [f"{'card' if i % 2 else 'transfer'} {text()},{i % 2}\n" for i in range(60)]
        (folder / f"classes/{part}.csv").write_text("text,label\n" + "".join(rows))
    (folder / "beir/qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": text()} for i in range(30)]
    (folder / "beir/corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in corpus))
    queries = [{"_id": f"q{i}", "text": corpus[i]["text"]} for i in range(10)]
    (folder / "beir/queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in queries))
    (folder / "beir/qrels/test.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(10)))
    names = {"STSBenchmark": "sts.csv", "Banking77Classification": "classes", "SciFact": "beir"}
    return {name: str(folder / path) for name, path in names.items()}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(local: dict[str, str], to: Path, **options: Any) -> SuiteConfig:
    system = {"name": "hashed", "encoder": "hash"}
    values: dict[str, Any] = {"system": system, "local": local, "output": str(to / "m.json")}
    return SuiteConfig.parse({**values, **options})


def test_tasks_by_name_run_on_local_data(local: dict[str, str], tmp_path: Path) -> None:
    report = measure_suite(config(local, tmp_path, tasks=list(local)))
    found = report["tasks"]
    assert found["SciFact"]["main_score"] > 0.9
    assert found["Banking77Classification"]["main_score"] > 0.9
    assert report["by_kind"]["STS"] == found["STSBenchmark"]["main_score"]
    assert report["average"] == pytest.approx(sum(row["main_score"] for row in found.values()) / 3)
    assert found["SciFact"]["instructions"] == [
        "",
        "Given a scientific claim, retrieve documents that support or refute the claim",
    ]
    assert json.loads((tmp_path / "m.json").read_text()) == report


def test_a_suite_names_the_cure_for_data_that_is_not_there(local: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the data of ArguAna .* \(HF_HOME\).* --set local\.ArguAna=PATH"):
        measure_suite(config(local, tmp_path, suite="mteb-paper-15"))
    report = measure_suite(config(local, tmp_path, suite="mteb-paper-15", absent="leave_out"))
    assert set(report["tasks"]) == set(local)
    assert len(report["absent"]) == 12


def test_what_is_kept_is_of_the_same_split_of_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayvec.evaluation import mteb_tasks

    real, scored = mteb_tasks.get_task, list[str]()

    def run(_: Any, task: Any) -> dict[str, float]:
        scored.append(task.eval_splits[0])
        return {"main_score": 0.5}

    monkeypatch.setattr(mteb_tasks, "load", lambda _: None)
    monkeypatch.setattr(mteb_tasks, "run", run)
    wanted = config({}, tmp_path, tasks=["MTOPIntentClassification"])
    for split in ("validation", "test", "test"):
        monkeypatch.setattr(mteb_tasks, "get_task", lambda *args, to=split: real(*args).filter_eval_splits([to]))
        row = measure_suite(wanted)["tasks"]["MTOPIntentClassification"]
        assert (row["split"], row["subset"]) == (split, "en")
    assert scored == ["validation", "test"]


@pytest.mark.parametrize(
    ("suite", "row", "others"),
    [
        ("mteb-paper-15", "| hashed (3 of 15 tasks: not to be compared)", ["S-LLaMA-1.3B Bi + MNTP + SimCSE", "52.40"]),
        ("mteb-paper-56", "| hashed (3 of 56 tasks: not to be compared)", ["Llama-3-8B Echo", "56.80"]),
    ],
)
def test_the_job_prints_our_row_beside_the_paper_s(
    local: dict[str, str], tmp_path: Path, suite: str, row: str, others: list[str]
) -> None:
    (tmp_path / "m.yaml").write_text(config(local, tmp_path, absent="leave_out").to_yaml())
    found = CliRunner().invoke(command, ["--config", str(tmp_path / "m.yaml"), "--suite", suite])
    assert found.exit_code == 0, found.output
    assert row in found.output
    assert all(text in found.output for text in others)


@pytest.mark.parametrize("suite", ["mteb-paper-15", "mteb-paper-56"])
def test_the_row_beside_the_paper_s_is_of_the_suite_alone(suite: str) -> None:
    row = {"kind": "STS", "metric": "cosine_spearman"}
    scores = {"STS17": {**row, "main_score": 0.5}, "STSBenchmark.v2": {**row, "main_score": 0.9}}
    report = {"suite": suite, "system": {"name": "ours"}, "pooling": "mean", "tasks": scores, "absent": {}}
    found = render({**report, "by_kind": {"STS": 0.7}, "average": 0.7})
    (ours,) = (line for line in found.splitlines() if line.startswith("| ours "))
    assert "50.00" in ours and "70.00" not in ours
    none = render({**report, "tasks": {"STSBenchmark.v2": scores["STSBenchmark.v2"]}, "average": 0.9})
    assert "| ours (0 of" in none


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "suite is required"),
        ({"workers": -1}, "workers = -1"),
        ({"tasks": ["SciFact"]}, "local.Banking77Classification: that task is not measured"),
        ({"suite": "mteb-paper-16"}, "suite = 'mteb-paper-16'"),
        ({"system": {"name": "x", "kind": "lexical"}}, "MTEB's tasks need vectors"),
    ],
)
def test_what_does_not_fit_is_refused(
    local: dict[str, str], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measure_suite(config(local, tmp_path, **options))
