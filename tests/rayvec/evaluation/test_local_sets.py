"""Labelled sets from files: the formats, and what is said of those that do not fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rayvec.errors import UserError
from rayvec.evaluation.local_sets import Labelled, read_candidates, read_labelled, read_labelled_pairs, read_split

RECORDS = [("where is my card?", "arrival"), ('a "new", card', "order"), ("it never came", "arrival")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,category\nwhere is my card?,arrival\n"a ""new"", card",order\nit never came,arrival\n'),
        ("a.jsonl", "".join(json.dumps({"sentence": t, "label": c}) + "\n" for t, c in RECORDS)),
        ("a.txt", "".join(f"{c} {t}\n" for t, c in RECORDS)),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_texts_with_a_class_are_read(tmp_path: Path, name: str, text: str, zipped: bool) -> None:
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    found = read_labelled(str(path))
    assert list(zip(found.texts, found.labels, strict=True)) == RECORDS


def test_some_of_many_are_spread_over_all() -> None:
    found = Labelled([str(i) for i in range(10)], ["a"] * 5 + ["b"] * 5).spread(4)
    assert (found.texts, found.labels) == (["0", "2", "5", "7"], ["a", "a", "b", "b"])


def test_candidates_keep_their_grades_and_equal_texts_are_one_document(tmp_path: Path) -> None:
    lines = [
        {"query": "q", "positive": ["x", "y"], "negative": ["z", "x"]},
        {"query": "r", "positive": ["z"], "negative": ["x"]},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_candidates(str(tmp_path / "c.jsonl"))
    assert found.documents == {"d1": "x", "d2": "y", "d3": "z"}
    assert found.qrels == {"q1": {"d1": 1, "d2": 1, "d3": 0}, "q2": {"d3": 1, "d1": 0}}


@pytest.mark.parametrize("texts", [["x", ["y"]], ["x", None], [{}], "x", []])
def test_candidates_that_are_no_texts_are_refused(tmp_path: Path, texts: object) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"query": "q", "positive": ["x"], "negative": texts}) + "\n")
    with pytest.raises(UserError, match=r"c\.jsonl, record 1: needs query .* \(lists of texts\)"):
        read_candidates(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\nx,1\ny,1\n", "holds 1 classes in 2 texts"),
        ("a.csv", "words,label\nx,1\n", "has no column text"),
        ("a.csv", "", "holds no records"),
        ("a.jsonl", "{]\n", "line 1 is no JSON object"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1 is no JSON object"),
        ("a.txt", "1 x\n2\n", "line 2: needs a label, a space and a text"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_labelled(str(tmp_path / name))


def test_pairs_need_labels_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    for rows, message in (("a,b,2\n", "the label is '2'"), ("a,b,1\n", "of one kind only")):
        path.write_text("sentence1,sentence2,label\n" + rows)
        with pytest.raises(UserError, match=message):
            read_labelled_pairs(str(path))


def test_a_class_of_test_must_be_learned(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nx,a\ny,b\n")
    (tmp_path / "test.csv").write_text("text,label\nx,a\ny,c\n")
    with pytest.raises(UserError, match="the label 'c' of test is not in train"):
        read_split(str(tmp_path))
    with pytest.raises(UserError, match="does not exist or is empty"):
        read_split(str(tmp_path / "none"))
