"""Examples: pieces of long texts, joined texts, pairs with their negatives, and what is wrong with a file of pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayvec.data.examples import ExampleStore
from rayvec.data.pairs import is_held_out
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError
from rayvec.training.examples import iter_pairs, iter_texts, prepare_masked, prepare_pairs, prepare_texts
from rayvec.training.stages import Mntp, Pairs, PairSet, Texts
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
    first = [texts.row(i)[1:] for i, id_ in enumerate(store.ids(np.arange(len(store)))) if id_ == rows[0]["id"]]
    assert np.concatenate(first).tolist() == tokenizer(rows[0]["text"], add_special_tokens=False)["input_ids"]


def test_held_out_documents_are_left_out_where_that_is_asked(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path, "simcse")
    asked = run.replace(data=run.data.replace(exclude_held_out=True))
    read = {}
    for name, one in (("by default", run), ("asked", asked)):
        prepare_texts(one, tmp_path / name, str(tmp_path))
        store = ExampleStore(tmp_path / name)
        read[name] = set(store.ids(np.arange(len(store))))
    assert read["by default"] == {f"doc-{i}" for i in range(60)}
    assert read["asked"] == {f"doc-{i}" for i in range(60) if not is_held_out(f"doc-{i}")} != read["by default"]


def test_of_pydocs_the_held_out_documents_are_left_out(tmp_path: Path) -> None:
    data = Texts(source=SourceConfig(kind="pydocs", packages=("packaging",)))
    ids = [id_ for id_, _ in iter_texts(data, str(tmp_path))]
    everything = [id_ for id_, _ in iter_texts(data.replace(exclude_held_out=False), str(tmp_path))]
    assert ids == [id_ for id_ in everything if not is_held_out(id_)] and len(ids) < len(everything)


def test_settings_of_a_source_are_named_as_a_stage_has_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("nr;text\n1;one\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--set data\.source\.delimiter=';'"):
        list(iter_texts(Texts(source=SourceConfig(path=str(tmp_path / "a.csv"))), str(tmp_path)))


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
    left_out = Counter[str]()
    found = list(iter_pairs(PairSet(name="p", path=str(tmp_path)), 1, "", left_out))
    assert left_out == {"with fewer than 1 hard negatives": 1}
    assert [(example.id, example.texts) for example in found] == [("p.jsonl:2", ("c", "d", "e"))]


@pytest.mark.parametrize("line", ['{"query": "a"', '{"query": "a"}', "[1]", '{"query": 1, "positive": "b"}'])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.jsonl:1"):
        list(iter_pairs(PairSet(name="p", path=str(tmp_path / "p.jsonl")), 0, ""))


def test_a_line_that_is_no_pair_may_be_skipped_and_counted(tmp_path: Path) -> None:
    lines = ['{"query": "a"}', "{", '{"query": "a", "positive_id": "d"}', '{"query": "a", "positive": "b"}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    left_out = Counter[str]()
    pairs = PairSet(name="p", path=str(tmp_path / "p.jsonl"), on_bad_pair="skip")
    assert [example.id for example in iter_pairs(pairs, 0, "", left_out)] == ["p.jsonl:4"]
    assert left_out == {"that are none": 3}


def test_a_set_of_which_nothing_is_left_names_the_setting(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"query": "a", "positive": "b"}\n' * 9, encoding="utf-8")
    data = Pairs(sets=(PairSet(name="mine", path=str(tmp_path / "p.jsonl")),))
    with pytest.raises(UserError, match=r"set mine: .* 9 pairs with fewer than 1 .*stage.hard_negatives=0"):
        prepare_pairs(config(inputs, tmp_path, "supervised", data=data), tmp_path / "data", "")


def test_missing_pairs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs at"):
        list(iter_pairs(PairSet(name="p", path=str(tmp_path / "nothing*.jsonl")), 0, ""))


def test_the_stage_refuses_data_of_another_kind(inputs: Path, tmp_path: Path) -> None:
    pairs = Pairs(sets=(PairSet(name="p", path="x"),))
    with pytest.raises(ValueError, match="stage mntp trains on texts"):
        config(inputs, tmp_path, "mntp", data=pairs)
