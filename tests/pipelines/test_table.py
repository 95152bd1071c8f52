"""The table of an encoder: every system and kind of task on small sets, its files, what is kept, what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.measure import command
from pipelines._systems import SystemConfig, open_system
from pipelines._vectors import KeptVectors
from pipelines.recipes import get_recipe
from pipelines.report import Report
from pipelines.table import TableConfig, measure_table, render
from rayvec.errors import UserError
from rayvec.evaluation.retrieval import DEPTH
from rayvec.indexing.lexical import Lexical
from rayvec.indexing.ranking import Ranking
from rayvec.modeling.encoder import TextEncoder
from tests.models import tiny_llama

pytest.importorskip("sklearn")

TOPICS = {
    "storage": ["parquet", "file", "disk", "folder", "bytes"],
    "search": ["query", "index", "ranking", "document", "recall"],
    "network": ["socket", "port", "request", "server", "client"],
}
TAGS = {"the": "DT", "a": "DT", "list": "NN", "text": "NN", "sort": "VB", "raise": "VB"}
SYSTEMS = (
    {"name": "causal", "stages": 0, "attention": "causal", "pooling": "weighted_mean"},
    {"name": "last", "stages": 0, "attention": "causal", "pooling": "last_token"},
    {"name": "both ways"},
    {"name": "echo", "kind": "echo", "attention": "causal", "max_length": 64},
    {"name": "hash", "encoder": "hash"},
    {"name": "BM25", "kind": "lexical"},
    {"name": "hybrid", "kind": "hybrid", "dense": "hash"},
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, and a small set of each kind of task; texts of a topic share its words."""
    root = tmp_path_factory.mktemp("table")
    tiny_llama(root / "llama")
    rng = random.Random(0)

    def text(topic: str, number: int) -> str:
        return " ".join([*rng.sample(TOPICS[topic], 3), f"number {number}"])

    def lines(name: str, records: list[dict[str, Any]]) -> None:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    names = list(TOPICS)
    lines("beir/corpus.jsonl", [{"_id": f"d{i}", "text": text(names[i % 3], i)} for i in range(60)])
    lines("beir/queries.jsonl", [{"_id": f"q{i}", "text": " ".join(TOPICS[names[i % 3]])} for i in range(6)])
    (root / "beir/qrels").mkdir()
    judged = [f"q{q}\td{d}\t1\n" for q in range(6) for d in range(60) if d % 3 == q % 3]
    (root / "beir/qrels/test.tsv").write_text("".join(judged))
    for part, count in (("train", 60), ("test", 45)):
        lines(f"classes/{part}.jsonl", [{"text": text(names[i % 3], i), "label": names[i % 3]} for i in range(count)])
    pairs = [
        {"sentence1": text(names[i % 3], i), "sentence2": text(names[(i + i % 2) % 3], -i), "label": 1 - i % 2}
        for i in range(60)
    ]
    lines("pairs.jsonl", pairs)
    (root / "sts.csv").write_text(
        "".join(f"{p['sentence1']},{p['sentence2']},{5.0 * p['label'] + i % 3 * 0.1}\n" for i, p in enumerate(pairs))
    )
    candidates = [
        {
            "query": " ".join(TOPICS[names[i % 3]]),
            "positive": [text(names[i % 3], 100 + i)],
            "negative": [text(names[(i + k) % 3], 200 + i) for k in (1, 2)],
        }
        for i in range(9)
    ]
    lines("candidates.jsonl", candidates)
    for part, count in (("train", 60), ("test", 30)):
        sentences = [rng.choices(list(TAGS), k=6) for _ in range(count)]
        (root / f"{part}.conll").write_text("\n".join("".join(f"{w} {TAGS[w]}\n" for w in s) for s in sentences))
    return root


def config(root: Path, folder: Path, **options: Any) -> TableConfig:
    values: dict[str, Any] = {
        "encoder": str(root / "llama"),
        "systems": SYSTEMS,
        "tasks": [
            {"kind": "retrieval", "name": "beir", "data": "beir"},
            {"kind": "sts", "name": "sts", "data": "sts.csv"},
            {"kind": "classification", "name": "classes", "data": "classes"},
            {"kind": "clustering", "name": "clusters", "data": "classes/test.jsonl"},
            {"kind": "pairs", "name": "pairs", "data": "pairs.jsonl"},
            {"kind": "reranking", "name": "candidates", "data": "candidates.jsonl"},
            {"kind": "reranking", "name": "BM25's best", "data": "beir", "depth": 30},
            {"kind": "words", "name": "tags", "train": "train.conll", "test": "test.conll",
             "probe": {"steps": 60, "learning_rate": 0.03}},
        ],
        "root": str(root),
        "order": [["hash", "causal"], ["hybrid", "causal"]],
        "output": str(folder / "t.json"),
    }  # fmt: skip
    return TableConfig.parse({**values, **options})


@pytest.fixture(scope="module")
def report(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return measure_table(config(root, tmp_path_factory.mktemp("out")))


def test_each_system_takes_part_where_it_can(report: Report) -> None:
    tasks = {name: set(row) for name, row in report["systems"].items()}
    everything = {"beir", "sts", "classes", "clusters", "pairs", "candidates", "BM25's best", "tags"}
    assert tasks["causal"] == tasks["last"] == tasks["both ways"] == everything
    assert tasks["echo"] == tasks["hash"] == everything - {"tags"}
    assert tasks["BM25"] == tasks["hybrid"] == {"beir", "candidates", "BM25's best"}
    assert set(report["averages"]) == {"causal", "last", "both ways"}


def test_words_in_common_are_what_these_tasks_ask_for(report: Report) -> None:
    for task in ("beir", "sts", "classes", "pairs", "candidates"):
        hashed, random_weights = report["systems"]["hash"][task], report["systems"]["causal"][task]
        assert hashed["mean"] > (0.6 if task == "sts" else 0.8), task  # half of the pairs' scores are nearly alike
        assert hashed["mean"] > random_weights["mean"], task
    assert report["systems"]["BM25"]["beir"]["mean"] == 1.0
    assert report["systems"]["both ways"]["tags"]["mean"] > 0.5


def test_every_value_lies_in_its_interval(report: Report) -> None:
    for row in report["systems"].values():
        for task, found in row.items():
            assert found["low"] - 1e-9 <= found["mean"] <= found["high"] + 1e-9, task


def test_the_order_is_tested_on_each_task(report: Report) -> None:
    rows = {(row["higher"], row["task"]): row for row in report["order"]}
    assert rows["hash", "sts"]["verdict"] == "holds"
    assert rows["hash", "sts"]["p_value"] < 0.05
    assert ("hybrid", "sts") not in rows and ("hybrid", "beir") in rows


def test_candidates_are_scored_by_one_lexical_index_and_a_query_at_a_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of every query with every document at once would take more memory than there is."""
    built, asked = list[int](), list[int]()
    build, search = Lexical.build, Lexical.search

    def building(texts: Iterable[str], **options: Any) -> Lexical:
        found = build(texts, **options)
        built.append(found.count)
        return found

    def searching(self: Lexical, queries: Sequence[str], k: int) -> Ranking:
        asked.append(k)
        return search(self, queries, k)

    monkeypatch.setattr(Lexical, "build", building)
    monkeypatch.setattr(Lexical, "search", searching)
    names = ("hash", "BM25", "hybrid")
    report = measure_table(
        config(
            root,
            tmp_path,
            systems=[system for system in SYSTEMS if system["name"] in names],
            tasks=[
                {"kind": "reranking", "name": "candidates", "data": "candidates.jsonl"},
                {"kind": "reranking", "name": "BM25's best", "data": "beir", "depth": 30},
            ],
            order=[],
        )
    )
    assert set(report["systems"]) == set(names)
    assert sorted(built) == [27, 60] and asked == [DEPTH + 1]


def test_an_echo_costs_twice_the_tokens_and_more(report: Report) -> None:
    costs = report["costs"]
    assert costs["echo"]["tokens"] > 2 * costs["causal"]["tokens"] * 0.9
    assert costs["echo"]["texts"] == costs["causal"]["texts"]
    assert costs["last"]["tokens"] == costs["causal"]["tokens"] + costs["causal"]["texts"]  # </s> after each
    assert "BM25" not in costs


def test_the_report_and_all_beside_it_are_written(report: Report) -> None:
    output = Path(report["output"])
    assert json.loads(output.read_text()) == report
    assert output.with_suffix(".md").read_text() == render(report) + "\n"
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "| hash > causal " in render(report)


def test_what_was_encoded_is_not_encoded_again(root: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same table again, with no encoder that could encode (words have no vectors to keep)."""
    fewer = config(root, Path(report["output"]).parent)
    fewer = fewer.replace(tasks=tuple(task for task in fewer.tasks if task.kind != "words"))
    before = {name: {t: v for t, v in row.items() if t != "tags"} for name, row in report["systems"].items()}

    def refuse(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "encode_tokens", refuse)
    again = measure_table(fewer)
    assert again["systems"] == before
    assert again["costs"] == report["costs"]


def test_kept_vectors_are_those_of_the_text_and_the_instruction(root: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(root / "llama", device="cpu")
    texts = ["read a file", "open a socket"]
    for _ in range(2):
        vectors = KeptVectors(encoder, "x", str(tmp_path))
        np.testing.assert_array_equal(vectors(texts), encoder.encode(texts))
        np.testing.assert_array_equal(vectors(texts[::-1]), encoder.encode(texts[::-1]))
        np.testing.assert_array_equal(vectors(texts, "Find"), encoder.encode(texts, "Find"))
        assert vectors(texts) is not None and vectors.cost.texts == 6
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_vectors_of_other_numbers_are_others(root: Path, tmp_path: Path) -> None:
    few = config(root, tmp_path)
    few = few.replace(systems=few.systems[2:3], tasks=few.tasks[1:2], order=(), cache=str(tmp_path / "cache"))
    exact, rounded = (measure_table(few.replace(dtype=dtype)) for dtype in ("float32", "int8"))
    assert exact["fingerprints"] == rounded["fingerprints"]
    assert exact["systems"] != rounded["systems"]
    assert exact["costs"]["both ways"]["seconds"] != rounded["costs"]["both ways"]["seconds"]
    kept = {path.parent.name.partition("-")[2] for path in (tmp_path / "cache").rglob("*.npy")}
    assert kept == {"float32-cpu", "int8-cpu"}


def test_workers_without_room_are_refused_not_waited_for(root: Path, tmp_path: Path, ray_cluster: None) -> None:
    few = config(root, tmp_path, workers=99)
    few = few.replace(systems=few.systems[4:5], tasks=few.tasks[1:2], order=())
    with pytest.raises(UserError, match=r"workers = 99 need a CPU each, .* room for (\d+); set workers=\1"):
        measure_table(few)


def test_workers_give_the_same_table(root: Path, report: Report, tmp_path: Path, ray_cluster: None) -> None:
    few = config(root, tmp_path, workers=2)
    few = few.replace(systems=few.systems[2:3], tasks=few.tasks[1:2], order=())
    found = measure_table(few)
    here, there = (one["systems"]["both ways"]["sts"]["mean"] for one in (report, found))
    assert there == pytest.approx(here, abs=1e-6)
    assert found["costs"]["both ways"]["tokens"] > 0


def test_stages_of_the_embedded_encoder_are_its_adapters() -> None:
    after_one = open_system(SystemConfig(name="x", stages=1), "tiny")
    assert isinstance(after_one, TextEncoder)
    assert [adapter.stage for adapter in after_one.folder.manifest.adapters] == ["mntp"]
    whole = open_system(SystemConfig(name="x", stages=3), "tiny")
    assert whole.fingerprint == TextEncoder.load("tiny").fingerprint
    with pytest.raises(UserError, match=r"stages = 4: .* has 3 stages"):
        open_system(SystemConfig(name="x", stages=4), "tiny")


def test_a_recipe_without_a_family_is_the_embedded_model_s() -> None:
    assert get_recipe("ablation", TableConfig) == get_recipe("tiny.ablation", TableConfig)
    assert len(get_recipe("ablation", TableConfig).systems) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "t.txt"}, "give a file with --set output=FILE.json"),
        ({"systems": []}, "systems and tasks are required"),
        ({"systems": [{"name": "a"}, {"name": "a"}]}, "'a' stands twice"),
        ({"systems": [{"name": "h", "kind": "hybrid", "dense": "b"}]}, "h needs dense=NAME"),
        ({"order": [["hash", "nobody"]]}, "there is no system 'nobody'"),
        ({"systems": [{"name": "e", "encoder": "hash", "kind": "echo"}], "order": []}, "a HashEncoder has no stages"),
        ({"tasks": [{"kind": "sts", "name": "s", "data": "none.csv"}]}, "none.csv does not exist"),
        ({"tasks": [{"kind": "classification", "name": "s", "data": "beir"}]}, "beir has no train.csv"),
        ({"tasks": [{"kind": "pairs", "name": "s", "data": "classes/test.jsonl"}]}, "has no column sentence1"),
        ({"tasks": [{"kind": "nothing", "name": "s"}]}, "tasks"),
    ],
)
def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_table(config(root, tmp_path, **options))


def test_the_job_prints_the_table(root: Path, tmp_path: Path) -> None:
    few = config(root, tmp_path)
    few = few.replace(systems=few.systems[4:], tasks=few.tasks[:1], order=(("hybrid", "BM25"),))
    (tmp_path / "table.yaml").write_text(few.to_yaml())
    found = CliRunner().invoke(command, ["--config", str(tmp_path / "table.yaml")])
    assert found.exit_code == 0, found.output
    assert "| BM25   | 1.000 [1.000, 1.000] |" in found.output
    assert "| hybrid > BM25 " in found.output
