"""Before and after on a corpus without labels: questions out of titles, spans and logs; the verdict; the page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.measure import command
from pipelines.adaptation import AdaptationConfig, load_corpus, report_adaptation, verdict
from rayvec.errors import UserError

WORDS = [
    f"{a}{b}" for a in ("red", "blue", "fast", "cold", "old") for b in ("ship", "stone", "river", "engine", "bird")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts, each with a title of its own words; and a log of queries."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    records = []
    for i in range(60):
        words = rng.sample(WORDS, 8)
        text = " ".join(rng.choices(words, k=40))
        records.append({"id": f"d{i}", "title": f"{words[0]} {words[1]} {words[2]}", "text": text})
    (folder / "titled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    bare = [{name: record[name] for name in ("id", "text")} for record in records]
    (folder / "bare.jsonl").write_text("".join(json.dumps(r) + "\n" for r in bare))
    log = [{"query": record["title"], "positive": record["id"]} for record in records[::2]]
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*log, {"query": "x", "positive": "gone"}]))
    return folder


def config(folder: Path, to: Path, name: str = "titled.jsonl", **options: Any) -> AdaptationConfig:
    values: dict[str, Any] = {
        "before": {"name": "small", "encoder": "hash:8"},
        "after": {"name": "large", "encoder": "hash:256"},
        "source": {"path": str(folder / name)},
        "output": str(to / "a.json"),
    }
    return AdaptationConfig.parse({**values, **options})


def test_more_dimensions_help_and_the_report_says_so(folder: Path, tmp_path: Path) -> None:
    report = report_adaptation(config(folder, tmp_path))
    assert report["verdict"] == "adaptation helped"
    assert report["change"]["ndcg@10"]["low"] > 0
    assert (report["documents"], report["queries"], report["questions"]) == (60, 60, "a title asks for its body")
    assert json.loads((tmp_path / "a.json").read_text()) == report
    assert (tmp_path / "a.md").read_text().splitlines()[2].startswith("adaptation helped: +0.")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a.neighbours.md").read_text()
    assert page.count("**before**") == page.count("**after**") == page.count("\n## ") > 5
    assert "✓" in page


def test_the_other_way_round_is_worse_and_the_same_is_no_difference(folder: Path, tmp_path: Path) -> None:
    usual = config(folder, tmp_path)
    worse = report_adaptation(usual.replace(before=usual.after, after=usual.before))
    assert worse["verdict"].startswith("adaptation made it worse")
    same = report_adaptation(usual.replace(before=usual.after))
    assert same["verdict"].startswith("no difference")
    assert same["change"]["ndcg@10"]["p_value"] == 1.0


def test_without_titles_a_span_that_is_taken_out_asks(folder: Path, tmp_path: Path) -> None:
    found = load_corpus(config(folder, tmp_path, "bare.jsonl"), str(tmp_path))
    assert found.how.startswith("a span")
    assert len(found.questions) == 60
    originals = {r["id"]: r["text"] for r in map(json.loads, (folder / "bare.jsonl").read_text().splitlines())}
    for question, answer in zip(found.questions, found.answers, strict=True):
        rest = found.texts[found.ids.index(answer)]
        assert 6 <= len(question.split()) <= 14
        assert question in originals[answer]
        assert len(rest.split()) == len(originals[answer].split()) - len(question.split())
    assert found == load_corpus(config(folder, tmp_path, "bare.jsonl"), str(tmp_path))


def test_a_log_asks_for_the_texts_it_names(folder: Path, tmp_path: Path) -> None:
    options = {"questions": "log", "log": str(folder / "log.jsonl")}
    found = load_corpus(config(folder, tmp_path, **options, max_documents=40), str(tmp_path))
    assert len(found.questions) == 30  # the one that names no text is left out
    assert set(found.answers) <= set(found.ids)
    assert len(found.ids) == 40


def test_ids_that_are_repeated_or_look_like_questions_change_nothing(folder: Path, tmp_path: Path) -> None:
    usual = report_adaptation(config(folder, tmp_path))
    lines = (folder / "titled.jsonl").read_text().replace('"id": "d', '"id": "q').splitlines(keepends=True)
    # Turned around, so that question n is of another document than qn.
    again = [json.dumps({**json.loads(line), "text": "said in other words " * 20}) + "\n" for line in lines]
    (tmp_path / "other.jsonl").write_text("".join([*lines[::-1], *again]))
    found = report_adaptation(config(tmp_path, tmp_path, "other.jsonl"))
    assert found["documents"] == usual["documents"]
    for name, row in usual["systems"].items():
        assert found["systems"][name]["recall@100"]["mean"] == row["recall@100"]["mean"] == 1.0
        assert found["systems"][name]["ndcg@10"]["mean"] == pytest.approx(row["ndcg@10"]["mean"], abs=0.01)


def test_the_verdict_needs_more_than_chance() -> None:
    assert verdict(0.2, 0.2).startswith("no difference")
    assert verdict(-0.01, 0.01).startswith("adaptation made it worse")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "a.txt"}, "give a file with --set output=FILE.json"),
        ({"questions": "log"}, "log is required"),
        ({"name": "log.jsonl"}, "log.jsonl"),
        ({"after": {"name": "x", "kind": "lexical"}}, "x has no vectors"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        report_adaptation(config(folder, tmp_path, **options))


def test_the_job_prints_the_verdict_first(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(config(folder, tmp_path, max_queries=20).to_yaml())
    found = CliRunner().invoke(command, ["--config", str(tmp_path / "a.yaml")])
    assert found.exit_code == 0, found.output
    assert "60 documents, 20 questions" in found.output
    assert "| ndcg@10" in found.output
