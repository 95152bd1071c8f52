"""Examples: pieces of long texts, joined texts, pairs with their negatives, and what is wrong with a file of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayvec.data.examples import ExampleStore
from rayvec.data.pairs import is_held_out
from rayvec.errors import UserError
from rayvec.training.examples import iter_pairs, prepare_masked, prepare_pairs, prepare_texts
from rayvec.training.stages import Mntp, Pairs, PairSet
from tests.runs import LORA, config, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_long_texts_are_cut_in_pieces_that_hold_all_tokens(inputs: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run = config(inputs, tmp_path, "mntp", max_length=16)
    prepare_masked(run, tmp_path / "data", str(tmp_path))
    store = ExampleStore(tmp_path / "data")
    texts = store.texts(np.arange(len(store)))
    assert texts.lengths.max() == 16 and len(store) > 60
    assert (texts.input_ids[texts.offsets[:-1]] == 1).all()  # each piece starts with <s>
    tokenizer = AutoTokenizer.from_pretrained(inputs / "base")
    rows = [json.loads(line) for line in (inputs / "docs.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if not is_held_out(row["id"])]
    first = [texts.row(i)[1:] for i, id_ in enumerate(store.ids(np.arange(len(store)))) if id_ == kept[0]["id"]]
    assert np.concatenate(first).tolist() == tokenizer(kept[0]["text"], add_special_tokens=False)["input_ids"]


def test_held_out_documents_are_left_out(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path, "simcse")
    prepare_texts(run, tmp_path / "data", str(tmp_path))
    store = ExampleStore(tmp_path / "data")
    ids = set(store.ids(np.arange(len(store))))
    assert ids == {f"doc-{i}" for i in range(60) if not is_held_out(f"doc-{i}")} and len(ids) < 60


def test_joined_texts_fill_every_row(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path, "mntp", stage=Mntp(lora=LORA, documents="joined"), max_length=16)
    prepare_masked(run, tmp_path / "data", str(tmp_path))
    assert set(ExampleStore(tmp_path / "data").lengths().tolist()) == {16}


def test_pairs_have_a_column_each(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path, "supervised")
    prepare_pairs(run, tmp_path / "data", str(tmp_path))
    store = ExampleStore(tmp_path / "data")
    assert (store.width, len(store), store.sets[0].name) == (3, 40, "pairs")
    assert store.ids(np.array([0])) == ["pairs.jsonl:1"]


def test_pairs_with_too_few_negatives_are_left_out(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d", "negative": "e"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = list(iter_pairs(PairSet(name="p", path=str(tmp_path)), 1, ""))
    assert [(example.id, example.texts) for example in found] == [("p.jsonl:2", ("c", "d", "e"))]


@pytest.mark.parametrize("line", ['{"query": "a"', '{"query": "a"}', "[1]", '{"query": 1, "positive": "b"}'])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.jsonl:1"):
        list(iter_pairs(PairSet(name="p", path=str(tmp_path / "p.jsonl")), 0, ""))


def test_missing_pairs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs at"):
        list(iter_pairs(PairSet(name="p", path=str(tmp_path / "nothing*.jsonl")), 0, ""))


def test_the_stage_refuses_data_of_another_kind(inputs: Path, tmp_path: Path) -> None:
    pairs = Pairs(sets=(PairSet(name="p", path="x"),))
    with pytest.raises(ValueError, match="stage mntp trains on texts"):
        config(inputs, tmp_path, "mntp", data=pairs)
