"""Long documents in one unit: rows a window or a mean, and still each record exactly once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayvec.data.embeddings import EmbeddingsDataset, vectors
from rayvec.encoding.publish import manifest, publish, settle_duplicates
from rayvec.encoding.shards import Plan
from rayvec.encoding.sink import Line, Record
from rayvec.encoding.work import Work, complete, prepare
from rayvec.modeling.hash_encoder import HashEncoder
from tests.corpora import KILLS, NOT_FINITE, RAISES, REFUSED, ListSource, in_a_process, marked, work_on

WORDS = [f"word{i}" for i in range(10)]
LONG = " ".join(WORDS)
WINDOWS: dict[str, Any] = {"long": "windows", "window_tokens": 4, "overlap_tokens": 1}
#: The windows of LONG: ten words, four at a time, each beginning with the last word of the one before.
PASSAGES = [" ".join(WORDS[a:b]) for a, b in [(0, 4), (3, 7), (6, 10)]]


def embed_one(output: Path, pairs: list[tuple[str, str]], **options: Any) -> tuple[Record, pa.Table, list[Line]]:
    """All documents as one unit: its record, its part, its refused records."""
    work = work_on(output, pairs, **{**WINDOWS, **options})
    [unit] = work.source.units(len(pairs))  # type: ignore[attr-defined]
    record = complete(work, unit, prepare(work, unit, marked("")), marked(""))
    return record, work.sink.table(record), work.sink.lines(unit.name)


@pytest.mark.parametrize("long", ["windows", "late"])
def test_each_window_is_a_row_that_says_where_it_is_from(tmp_path: Path, long: str) -> None:
    _, table, _ = embed_one(tmp_path, [("a", "short"), ("b", LONG)], long=long)
    assert table["id"].to_pylist() == ["a#0", "b#0", "b#1", "b#2"]
    assert table["parent_id"].to_pylist() == ["a", "b", "b", "b"]
    assert table["window"].to_pylist() == [0, 0, 1, 2]
    spans = zip(table["char_start"].to_pylist(), table["char_end"].to_pylist(), strict=True)
    assert table["text"].to_pylist() == ["short", *(LONG[a:b] for a, b in list(spans)[1:])]
    assert [text.strip() for text in table["text"].to_pylist()] == ["short", *PASSAGES]


@pytest.mark.parametrize("long", ["windows", "late"])
def test_each_window_has_the_vector_of_its_passage(tmp_path: Path, long: str) -> None:
    _, table, _ = embed_one(tmp_path, [("b", LONG)], long=long)
    np.testing.assert_array_equal(vectors(table), HashEncoder(dim=16).encode(PASSAGES))


def test_the_mean_is_of_the_windows_by_their_tokens(tmp_path: Path) -> None:
    _, table, _ = embed_one(tmp_path, [("a", "short"), ("b", LONG)], long="mean", overlap_tokens=0)
    parts_WD = HashEncoder(dim=16).encode([" ".join(WORDS[a:b]) for a, b in [(0, 4), (4, 8), (8, 10)]])
    mean_D = np.array([4, 4, 2]) @ parts_WD
    expected = [HashEncoder(dim=16).encode(["short"])[0], mean_D / np.linalg.norm(mean_D)]
    np.testing.assert_allclose(vectors(table), expected, atol=1e-6)
    assert table["id"].to_pylist() == ["a", "b"]
    assert table["text"].to_pylist() == ["short", LONG]


def test_no_end_of_a_long_document_is_left_out(tmp_path: Path) -> None:
    # Each pass has one token before the text's own: (1 + 1) and then 5 + 5 + 5; a late chunk counts its own.
    for long, tokens in [("windows", [2, 5, 5, 5]), ("mean", [2, 15]), ("late", [1, 4, 4, 4])]:
        record, table, _ = embed_one(tmp_path / long, [("a", "short"), ("b", LONG)], long=long)
        assert (table["n_tokens"].to_pylist(), record.truncated) == (tokens, 0)
        assert record.tokens == sum(tokens)


def test_a_document_is_one_record_whatever_its_rows(tmp_path: Path) -> None:
    record, table, lines = embed_one(tmp_path, [("a", "short"), ("x", REFUSED), ("b", LONG), ("a", LONG)])
    assert (record.rows, record.documents, record.quarantined, record.duplicates) == (4, 2, 1, 1)
    assert record.input_records == 4
    assert table["parent_id"].to_pylist() == ["a", "b", "b", "b"]
    assert [(line["id"], line["reason"]) for line in lines] == [("x", "empty_text"), ("a", "duplicate")]


@pytest.mark.parametrize("bad", [RAISES, NOT_FINITE])
def test_a_document_of_which_one_window_fails_is_refused_as_a_whole(tmp_path: Path, bad: str) -> None:
    record, table, [line] = embed_one(tmp_path, [("a", LONG), ("b", f"{LONG} {bad}"), ("c", LONG)])
    assert (line["id"], record.documents, record.rows) == ("b", 2, 6)
    assert set(table["parent_id"].to_pylist()) == {"a", "c"}
    np.testing.assert_array_equal(vectors(table), np.tile(HashEncoder(dim=16).encode(PASSAGES), (2, 1)))


def test_a_document_that_kills_its_process_is_found_among_windows(tmp_path: Path) -> None:
    pairs = [("a", LONG), ("b", f"{LONG} {KILLS}"), ("c", LONG)]
    code = f"from tests.rayvec.encoding.test_long_documents import *; embed_one(Path({str(tmp_path)!r}), {pairs!r})"
    statuses = [in_a_process(code) for _ in range(3)]
    while statuses[-1] != 0:
        statuses.append(in_a_process(code))
        assert len(statuses) < 8
    _, table, [line] = embed_one(tmp_path, pairs)
    assert (line["id"], line["reason"]) == ("b", "worker_crash")
    assert table["id"].to_pylist() == ["a#0", "a#1", "a#2", "c#0", "c#1", "c#2"]


def test_ids_that_look_like_windows_do_not_collide(tmp_path: Path) -> None:
    _, table, lines = embed_one(tmp_path, [("b", LONG), ("b#0", "one"), ("b#0#0", "two")])
    assert table["id"].to_pylist() == ["b#0", "b#1", "b#2", "b#0#0", "b#0#0#0"]
    assert lines == []


def test_the_title_is_read_with_the_first_window_and_characters_are_the_texts(tmp_path: Path) -> None:
    class Titled(ListSource):
        def read(self, unit: Any) -> Any:
            data = super().read(unit)
            data.table = data.table.set_column(1, "title", pa.array(["Two words"]))
            return data

    work = Work(
        Titled([("b", LONG)]), str(tmp_path), "marked", marked("").fingerprint, marked, marked, **WINDOWS,
    )  # fmt: skip
    [unit] = work.source.units(1)  # type: ignore[attr-defined]
    table = work.sink.table(complete(work, unit, prepare(work, unit, marked("")), marked("")))
    first, second = table.slice(0, 2).to_pylist()
    assert (first["text"].strip(), first["title"]) == ("word0 word1", "Two words")
    assert (second["char_start"], second["text"].strip()) == (LONG.index("word1"), "word1 word2 word3 word4")
    np.testing.assert_array_equal(first["embedding"], HashEncoder(dim=16).encode(["two words word0 word1"])[0])


def test_without_texts_the_windows_still_say_where_they_are(tmp_path: Path) -> None:
    _, table, _ = embed_one(tmp_path, [("b", LONG)], keep_text=False)
    assert table.schema.names == [
        "id", "title", "parent_id", "window", "char_start", "char_end", "embedding", "n_tokens", "truncated",
    ]  # fmt: skip


# Several units.

#: d1 stands in all three units, each time with another number of windows.
REPEATED = [("d0", LONG), ("d1", "one"), ("d2", LONG), ("d1", LONG), ("d4", "four"), ("d1", f"{LONG} {LONG}")]


def embed_all(output: Path, **options: Any) -> tuple[Work, list[Record]]:
    work = work_on(output, REPEATED, **{**WINDOWS, **options})
    units = work.source.units(2)  # type: ignore[attr-defined]
    records = [complete(work, unit, prepare(work, unit, marked("")), marked("")) for unit in units]
    settled = settle_duplicates(work.sink, units, records)
    plan = Plan((), tuple(units), work.fingerprint, {"dtype": work.dtype})
    publish(work.sink, manifest(plan, settled, work.sink, "marked"))
    return work, settled


def test_of_a_repeated_document_no_window_is_left_behind(tmp_path: Path) -> None:
    work, records = embed_all(tmp_path)
    ids = [id_ for record in records for id_ in work.sink.table(record)["id"].to_pylist()]
    assert ids == ["d0#0", "d0#1", "d0#2", "d1#0", "d2#0", "d2#1", "d2#2", "d4#0"]
    assert [(record.documents, record.duplicates) for record in records] == [(2, 0), (1, 1), (1, 1)]
    [line] = work.sink.lines(records[2].unit)
    assert (line["id"], line["position"], line["kept"]["position"]) == ("d1", 5, 1)


def test_a_run_killed_while_settling_and_run_again_ends_the_same(tmp_path: Path) -> None:
    embed_all(tmp_path / "whole")
    folder = tmp_path / "killed"
    code = f"from tests.rayvec.encoding.test_long_documents import *; embed_all(Path({str(folder)!r}))"
    assert in_a_process(code, RAYVEC_FAULT="before_replace:2") == 137
    embed_all(folder)
    for name in ("data", "ids", "units", "manifests"):
        whole = {file.name: file.read_bytes() for file in (tmp_path / "whole" / name).iterdir()}
        assert {file.name: file.read_bytes() for file in (folder / name).iterdir()} == whole


def test_what_was_published_verifies_and_tells_documents_from_rows(tmp_path: Path) -> None:
    embed_all(tmp_path)
    dataset = EmbeddingsDataset.open(str(tmp_path))
    assert dataset.verify()["rows"] == 8
    assert (dataset.count, dataset.manifest["totals"]["documents"], dataset.manifest["totals"]["records"]) == (8, 4, 6)
    assert dataset.payload == ["parent_id", "window", "char_start", "char_end"]


def test_a_window_that_is_missing_is_found(tmp_path: Path) -> None:
    work, [first, *_] = embed_all(tmp_path)
    table = work.sink.table(first)
    for rows, named in [([0, 2, 3], "not numbered"), ([1, 2, 3], "not numbered")]:
        dataset = EmbeddingsDataset.open(str(tmp_path))
        faults = list(dataset._row_faults(dataset.parts[0], table.take(rows)))
        assert named in faults[0]


def test_a_window_under_another_name_is_found(tmp_path: Path) -> None:
    work, [first, *_] = embed_all(tmp_path)
    table = work.sink.table(first)
    renamed = table.set_column(0, "id", pa.array(["d0#0", "d0#1", "d0#3", "d1#0"]))
    dataset = EmbeddingsDataset.open(str(tmp_path))
    assert "ids of windows are not their documents'" in next(dataset._row_faults(dataset.parts[0], renamed))


def test_a_text_is_not_copied_for_each_of_its_windows(tmp_path: Path) -> None:
    text = "word " * 40_000  # 200 kB, and 20,000 windows: 4 GB, were the text beside each of them
    record, table, _ = embed_one(tmp_path, [("b", text)], window_tokens=2, overlap_tokens=0)
    assert record.rows == 20_000
    assert "".join(table["text"].to_pylist()) == text
