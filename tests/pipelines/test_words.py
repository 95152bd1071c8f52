"""The word-level probe as a run: its numbers on a small random model, its files, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.measure import command
from pipelines.report import Report
from pipelines.words import WordsConfig, measure_words, render
from rayvec.errors import UserError
from rayvec.evaluation.word_level import ProbeSettings
from tests.models import tiny_llama

TAGS = {"the": "DT", "a": "DT", "list": "NN", "text": "NN", "vector": "NN", "sort": "VB", "raise": "VB", "into": "IN"}


def columns(sentences: int, seed: int) -> str:
    rng = random.Random(seed)
    drawn = [rng.choices(list(TAGS), k=6) for _ in range(sentences)]
    return "\n".join("".join(f"{word} {TAGS[word]}\n" for word in words) for words in drawn)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, and sentences in which each word has a tag of its own."""
    folder = tmp_path_factory.mktemp("words")
    tiny_llama(folder / "llama")
    (folder / "train.conll").write_text(columns(60, 1))
    (folder / "test.conll").write_text(columns(30, 2))
    return folder


def config(folder: Path, to: Path, **options: Any) -> WordsConfig:
    values: dict[str, Any] = {
        "encoder": str(folder / "llama"),
        "train": str(folder / "train.conll"),
        "test": str(folder / "test.conll"),
        "probe": ProbeSettings(steps=100, learning_rate=0.03),
        "output": str(to),
    }
    return WordsConfig.parse({**values, **options})


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return measure_words(config(folder, tmp_path_factory.mktemp("output") / "r.json"))


def test_a_probe_reads_words_from_their_own_states(report: Report) -> None:
    assert report["systems"]["majority"]["accuracy"]["mean"] == 1.0
    # Random weights mix a word with its neighbours, but far more is left of it than chance: NN is 3 words of 8.
    assert report["systems"]["probe"]["accuracy"]["low"] > 0.5
    assert report["systems"]["probe"]["entity_f1"] is None
    assert report["test"] == {"sentences": 30, "words": 180, "words_cut": 0, "words_without_tokens": 0}
    assert (report["tags"], report["settings"]["position"]) == (4, "word")


def test_the_place_before_tells_less_in_a_model_without_mntp(folder: Path, tmp_path: Path, report: Report) -> None:
    before = measure_words(config(folder, tmp_path / "r.json", position="previous"))
    assert before["settings"]["position"] == "previous"
    assert before["systems"]["probe"]["accuracy"]["high"] < report["systems"]["probe"]["accuracy"]["low"]


def test_the_report_and_the_table_are_written(report: Report) -> None:
    output = Path(report["output"])
    assert json.loads(output.read_text()) == report
    assert output.with_suffix(".md").read_text() == render(report) + "\n"
    assert "| majority | 1.000 [1.000, 1.000] |" in render(report)


def test_the_same_run_gives_the_same_numbers(folder: Path, report: Report, tmp_path: Path) -> None:
    assert measure_words(config(folder, tmp_path / "r.json"))["systems"] == report["systems"]


def test_of_train_no_more_is_read_than_the_steps_can_see(folder: Path, tmp_path: Path) -> None:
    few = ProbeSettings(steps=5, batch_size=4)
    found = measure_words(config(folder, tmp_path / "r.json", probe=few))
    assert (found["train"]["sentences"], found["test"]["sentences"]) == (20, 30)
    fewer = measure_words(config(folder, tmp_path / "r.json", probe=few, max_sentences=10))
    assert (fewer["train"]["sentences"], fewer["test"]["sentences"]) == (10, 10)


def test_bio_tags_are_scored_by_entities_too(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("seqeval")
    for name in ("train", "test"):
        text = (folder / f"{name}.conll").read_text()
        bio = text.replace(" DT", " B-NP").replace(" NN", " I-NP").replace(" VB", " O").replace(" IN", " O")
        (tmp_path / f"{name}.conll").write_text(bio)
    options = {name: str(tmp_path / f"{name}.conll") for name in ("train", "test")}
    found = measure_words(config(folder, tmp_path / "r.json", **options))
    assert found["systems"]["majority"]["entity_f1"]["mean"] == 1.0
    assert 0.4 < found["systems"]["probe"]["entity_f1"]["mean"] < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "r.txt"}, "give a file with --set output=FILE.json"),
        ({"train": ""}, "train is required"),
        ({"encoder": "hash"}, "encoder = 'hash' has no token states to probe"),
        ({"tag_column": 0}, "tag_column = 0: column 0 holds the word"),
        ({"tag_column": 3}, "tag_column = 3 is none of those"),
        ({"probe": {"dropout": 1.0}}, "probe.dropout = 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_words(config(folder, tmp_path / "r.json", **options))


def test_the_job_prints_the_table(folder: Path, tmp_path: Path) -> None:
    wanted = config(folder, tmp_path / "r.json", max_sentences=20)
    settings = [f"{name}={getattr(wanted, name)}" for name in ("encoder", "train", "test", "output", "max_sentences")]
    overrides = [part for setting in settings for part in ("--set", setting)]
    found = CliRunner().invoke(command, ["--recipe", "tiny.words", *overrides, "--set", "probe.steps=10"])
    assert found.exit_code == 0, found.output
    assert "| majority | 1.000 [1.000, 1.000] |" in found.output
    assert "measure: done" in found.output


def test_a_saved_configuration_runs_by_its_kind(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "words.yaml"
    saved.write_text(config(folder, tmp_path / "r.json").to_yaml())
    found = CliRunner().invoke(command, ["--config", str(saved), "--set", "probe.steps=7", "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "kind: words" in found.output and "steps: 7" in found.output
