"""Measuring on a small BEIR folder with the HashEncoder: the numbers, the files, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.measure import command
from pipelines.measure import SUITES, MeasureConfig, measure, render
from pipelines.report import Report
from rayvec.data.pairs import is_held_out
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError

TOPICS = ["parquet files", "matrix products", "regular expressions", "sorted lists", "random numbers", "open sockets"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that each share words with one query; what answers a query holds all of its words."""
    folder: Path = tmp_path_factory.mktemp("beir")
    (folder / "qrels").mkdir()
    corpus = [
        {"_id": f"d{i}-{j}", "title": "", "text": f"{t} by way {j}"} for i, t in enumerate(TOPICS) for j in range(5)
    ]
    queries = [{"_id": f"q{i}", "text": f"how to use {topic}"} for i, topic in enumerate(TOPICS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in queries))
    judged = [f"q{i}\td{i}-{j}\t1\n" for i in range(len(TOPICS)) for j in range(5)]
    (folder / "qrels/test.tsv").write_text("".join(judged))
    return folder


def run(folder: Path, output: Path, **options: Any) -> Report:
    return measure(MeasureConfig(encoder="hash", data=str(folder), output=str(output), **options))


def test_every_system_finds_what_shares_its_words(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "r.json", dimensions=(16,))
    assert list(report["systems"]) == ["dense", "dense@16", "lexical", "hybrid"]
    assert report["systems"]["lexical"]["ndcg@10"]["mean"] == 1.0
    assert report["systems"]["dense"]["ndcg@10"]["mean"] > 0.9
    assert (report["documents"], report["queries"]) == (30, 6)


def test_the_report_and_all_beside_it_are_written(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == report
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.md").read_text() == render(report) + "\n"
    rows = [json.loads(line) for line in (tmp_path / "r.queries.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rows] == [f"q{i}" for i in range(6)]
    mean = sum(row["hybrid"]["mrr"] for row in rows) / 6
    assert report["systems"]["hybrid"]["mrr"]["mean"] == pytest.approx(mean, abs=1e-5)


def test_the_same_run_gives_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    first, again = (run(folder, tmp_path / f"{name}.json", batch=batch) for name, batch in (("a", 1000), ("b", 7)))
    assert first["systems"] == again["systems"]
    assert first["comparisons"] == again["comparisons"]


def test_queries_that_are_documents_do_not_find_themselves(tmp_path: Path) -> None:
    """As in ArguAna: each query is a document too, the best there is for itself, and judged is another."""
    (tmp_path / "qrels").mkdir()
    texts = {f"{side}{i}": f"{topic} {side}" for i, topic in enumerate(TOPICS) for side in ("pro", "contra")}
    lines = "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in texts.items())
    (tmp_path / "corpus.jsonl").write_text(lines)
    (tmp_path / "queries.jsonl").write_text(lines)
    (tmp_path / "qrels/test.tsv").write_text("".join(f"pro{i}\tcontra{i}\t1\n" for i in range(len(TOPICS))))
    report = run(tmp_path, tmp_path / "r.json")
    assert {name: row["ndcg@10"]["mean"] for name, row in report["systems"].items()} == {
        "dense": 1.0,
        "lexical": 1.0,
        "hybrid": 1.0,
    }


def test_of_an_id_that_is_repeated_the_first_counts(tmp_path: Path) -> None:
    texts = [f"Do the thing number {i} of {TOPICS[i % 6]}.\n\n" + f"It is done {i} times. " * 5 for i in range(200)]
    ids = [f"d{i // 2}" for i in range(200)]
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "documents.parquet")
    report = measure(
        MeasureConfig(data=str(tmp_path / "documents.parquet"), output=str(tmp_path / "r.json"), systems=("lexical",))
    )
    assert report["queries"] == report["documents"] == sum(is_held_out(f"d{i}") for i in range(100))
    assert report["systems"]["lexical"]["ndcg@10"]["mean"] == 1.0


def test_an_instruction_is_measured_beside_the_plain_queries(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "r.json", instruction="find the answer")
    assert list(report["systems"]) == ["dense", "instruction", "lexical", "hybrid"]
    # Its words are not pooled by the HashEncoder, so nothing changes.
    assert report["systems"]["instruction"] == report["systems"]["dense"]


def test_lexical_alone_loads_no_encoder(folder: Path, tmp_path: Path) -> None:
    config = MeasureConfig(encoder="no such encoder", data=str(folder), output=str(tmp_path / "r.json"))
    report = measure(config.replace(systems=("lexical",)))
    assert list(report["systems"]) == ["lexical"]
    assert report["encoder"] is None


def test_the_weight_of_nothing_leaves_the_lexical_ranking(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path / "r.json", dense_weight=0.0, fusion="weighted")
    assert report["systems"]["hybrid"]["ndcg@10"] == report["systems"]["lexical"]["ndcg@10"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ""}, "data is required; .* a suite: pydocs"),
        ({"output": ""}, "give a file with --set output=FILE.json"),
        ({"systems": ("instruction", "lexical")}, "hash has no instruction for queries; give one with --set instruct"),
        ({"dimensions": (100_000,)}, "the encoder's vectors have 64; ask for fewer"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    values = {"encoder": "hash", "data": str(folder), "output": str(tmp_path / "r.json"), **options}
    with pytest.raises(UserError, match=message):
        measure(MeasureConfig.parse(values))


def copied(folder: Path, to: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Path:
    """The folder with its documents changed."""
    shutil.copytree(folder, to)
    records = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    lines = [json.dumps(change(place, record)) + "\n" for place, record in enumerate(records)]
    (to / "corpus.jsonl").write_text("".join(lines))
    return to


def test_a_document_whose_title_is_a_number_is_measured(folder: Path, tmp_path: Path) -> None:
    numbered = copied(folder, tmp_path / "numbered", lambda i, record: {**record, "title": 1984 + i})
    assert run(numbered, tmp_path / "r.json")["documents"] == 30


def test_what_is_left_out_is_told_beside_the_table(folder: Path, tmp_path: Path) -> None:
    def broken(place: int, record: dict[str, Any]) -> dict[str, Any]:
        return record if place % 5 else {**record, "text": ["not", "a", "text"]}

    odd = copied(folder, tmp_path / "odd", broken)
    judged = (odd / "qrels/test.tsv").read_text().replace("q5\td5", "q5\tgone") + "nobody\td0-1\t1\n"
    (odd / "qrels/test.tsv").write_text(judged)
    report = run(odd, tmp_path / "r.json")
    note = "left out of the corpus: 6 bad_value, the text or the title is neither a string nor a number"
    assert note in render(report).splitlines()
    assert "left out of the queries: 1, judged and not there" in render(report).splitlines()
    lost = "relevant and not in the corpus: 10 documents; queries left without one: 1"
    assert lost in render(report).splitlines()
    clean = render(run(folder, tmp_path / "r.json"))
    assert "left out" not in clean and "not in the corpus" not in clean


@pytest.mark.parametrize("systems", [("dense",), ("lexical",)])
def test_a_corpus_without_a_document_is_refused(folder: Path, tmp_path: Path, systems: tuple[str, ...]) -> None:
    odd = copied(folder, tmp_path / "odd", lambda _, record: {**record, "text": []})
    with pytest.raises(UserError, match=r"odd has no document to search \(left out of the corpus: 30 bad_value, "):
        run(odd, tmp_path / "r.json", systems=systems)


def test_the_pydocs_suite_asks_about_held_out_documents_only(tmp_path: Path) -> None:
    """A small corpus lies where the collected one is kept."""
    documents = [
        {"id": f"package.f{i}", "title": "f()", "text": f"Do the thing number {i}.\n\n" + f"It is done {i} times. " * 5}
        for i in range(600)
    ]
    extra = {"package": "p", "version": "1", "kind": "function", "file": "p.py", "line": 1}
    table = pa.Table.from_pylist([document | extra for document in documents])
    pq.write_table(table, tmp_path / f"pydocs-{SourceConfig(kind='pydocs').digest()}.parquet")
    task = SUITES["pydocs"](MeasureConfig(output=str(tmp_path / "r.json"), cache=str(tmp_path)))
    ids = [id_ for batch, _ in task.corpus.batches() for id_ in batch]
    assert ids == list(task.query_ids) == [d["id"] for d in documents if is_held_out(d["id"])]
    assert 0 < len(ids) < 100


def test_the_job_prints_the_table(folder: Path, tmp_path: Path) -> None:
    settings = {"encoder": "hash", "data": str(folder), "output": str(tmp_path / "r.json")}
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    found = CliRunner().invoke(command, ["--recipe", "hash.measure", *overrides])
    assert found.exit_code == 0, found.output
    assert "| lexical | 1.000 [1.000, 1.000]" in found.output
    assert "hybrid - lexical: " in found.output


def test_workers_give_the_same_numbers(folder: Path, tmp_path: Path, ray_cluster: None) -> None:
    alone = run(folder, tmp_path / "alone.json", dimensions=(16,))
    workers = run(folder, tmp_path / "workers.json", dimensions=(16,), workers=2, batch=3)
    assert workers["systems"] == alone["systems"] and workers["comparisons"] == alone["comparisons"]
