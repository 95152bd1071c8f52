from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rayvec.errors import UserError
from rayvec.evaluation.beir import load_beir, read_qrels, read_titled


def beir(folder: Path) -> Path:
    corpus = [
        {"_id": "1", "title": "One", "text": "first"},
        {"_id": "2", "title": "Two", "text": ""},
        {"_id": "3", "title": "", "text": ""},
    ]
    queries = [{"_id": "a", "text": "which?"}, {"_id": "b", "text": "not judged"}]
    (folder / "qrels").mkdir(parents=True)
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in corpus)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in queries))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\na\t2\t1\na\t1\t0\nz\t1\t1\n")
    return folder


def test_a_folder_becomes_a_task(tmp_path: Path) -> None:
    task = load_beir(str(beir(tmp_path / "toy")))
    assert (task.name, list(task.query_ids), list(task.queries)) == ("toy", ["a"], ["which?"])
    assert task.qrels["a"] == {"2": 1, "1": 0}


def test_titles_stand_before_the_text_and_may_stand_alone(tmp_path: Path) -> None:
    task = load_beir(str(beir(tmp_path)))
    assert list(task.corpus.batches()) == [(["1", "2"], ["One\nfirst", "Two"])]


@pytest.mark.parametrize(("id_", "text"), [("_id", "text"), ("id", "abstract")])
def test_titles_are_read_apart_under_every_name_that_a_corpus_may_have(tmp_path: Path, id_: str, text: str) -> None:
    records = [
        {id_: "1", "title": "One", text: "One is first"},
        {id_: "2", "title": "Two", text: ""},
        {id_: "3", "title": "", text: "third"},
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_titled(str(tmp_path)) == [
        {"id": "1", "title": "One", "text": "One is first"},
        {"id": "2", "title": "Two", "text": ""},
        {"id": "3", "title": "", "text": "third"},
    ]


def test_what_is_left_out_is_counted_anew_on_each_pass(tmp_path: Path) -> None:
    task = load_beir(str(beir(tmp_path)))
    for _ in range(2):
        list(task.corpus.batches())
    assert (dict(task.corpus.left_out), task.queries_missing) == ({"empty_text": 1}, 1)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("corpus.jsonl.gz", "has no corpus.jsonl"),
        ("queries.jsonl", "has no queries.jsonl"),
        ("qrels/test.tsv", "no qrels/test.tsv; splits there: none"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, remove: str, message: str) -> None:
    (beir(tmp_path) / remove).unlink()
    with pytest.raises(UserError, match=message):
        load_beir(str(tmp_path))


def test_a_missing_split_lists_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="splits there: test; choose one with --set split="):
        load_beir(str(beir(tmp_path)), "dev")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist or is empty"):
        load_beir(str(tmp_path / "nowhere"))


def test_ids_that_do_not_meet_are_noticed(tmp_path: Path) -> None:
    (beir(tmp_path) / "qrels/test.tsv").write_text("x\t1\t1\n")
    with pytest.raises(UserError, match="check that the ids are the same"):
        load_beir(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq\td\t2\n",
        "q\td\t2",
        "q 0 d 2\n",
        "q\t0\td\t2\r\n",
        "\ufeffq\td\t2\n\n",
        "q\td\t2.0\n",
    ],
)
def test_judgements_in_the_usual_forms(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.tsv").write_text(text, newline="")
    assert read_qrels(str(tmp_path / "q.tsv")) == {"q": {"d": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q\td\t1\nq\td\tx\n", "line 2: needs query-id"),
        ("q\td\t1\nq\td\t--1\n", "line 2: needs query-id"),
        ("", "no judgements"),
    ],
)
def test_a_broken_judgement_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "q.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_qrels(str(tmp_path / "q.tsv"))
