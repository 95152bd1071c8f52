"""Reading pairs: what a line may be, and what is said of one that is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec import storage
from rayvec.data.pair_files import PairColumns, PairLine, read_pairs
from rayvec.data.pairs import is_held_out
from rayvec.errors import UserError
from tests.buckets import s3_server


def test_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"query": "q2", "positive_id": "d2"}\n')
    (tmp_path / "a.jsonl").write_text('\n{"query": "q1", "positive": "p1", "negative": "n", "positive_id": "d1"}\n')
    expected = [
        PairLine(f"{tmp_path}/a.jsonl:2", "q1", "p1", "d1", ("n",)),
        PairLine(f"{tmp_path}/b.jsonl:1", "q2", None, "d2"),
    ]
    assert list(read_pairs(str(tmp_path), "")) == expected
    assert list(read_pairs(str(tmp_path / "*.jsonl"), "")) == expected


def test_a_number_is_an_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "positive_id": 7}\n')
    assert next(read_pairs(str(tmp_path / "a.jsonl"), "")).positive_id == "7"


def test_docstrings_ask_and_held_out_documents_do_not(tmp_path: Path) -> None:
    rest = "The second part is put after the first, with one separator between both of them."
    ids = [f"d{i}" for i in range(60)]
    table = pa.table({"id": ids, "text": [f"Join path number {i}.\n\n{rest}" for i in range(60)]})
    pq.write_table(table, tmp_path / "docs.parquet")
    pairs = list(read_pairs(str(tmp_path / "docs.parquet"), ""))
    assert [pair.positive_id for pair in pairs] == [id_ for id_ in ids if not is_held_out(id_)]
    assert pairs[0][1:4] == ("Join path number 0.", rest, "d0")
    assert len(pairs) < 60


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"pairs\.jsonl:1 is no pair \(Expecting"),
        ("[1]", "is no pair"),
        ('{"query": 3, "positive": "p"}', "is no pair"),
        ('{"query": "q", "positive": [3]}', "is no pair"),
        ('{"question": "q", "positive": "p"}', r"lacks query; its columns are question, positive.*columns={query"),
        ('{"query": "q", "positive": "\\ud800"}', "is no pair"),
        ('{"query": " ", "positive": "p"}', "lacks query"),
        ('{"query": "q", "positive": ""}', "lacks positive"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=says):
        list(read_pairs(str(tmp_path / "pairs.jsonl"), ""))


RECORDS = [{"anchor": "q1", "pos": "p1", "neg": "n1"}, {"anchor": "q2", "pos": "p2", "neg": "n2"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv.gz", "a.parquet"])
def test_pairs_are_read_from_every_format_by_the_usual_names(tmp_path: Path, name: str) -> None:
    rows = ["\t".join(record.values()) for record in RECORDS]
    text = {
        "jsonl": "\n".join(map(json.dumps, RECORDS)),
        "tsv": "\n".join(["anchor\tpos\tneg", *rows]),
        "csv": "\n".join(["anchor,pos,neg", *rows]).replace("\t", ","),
    }.get(name.split(".")[1])
    if text is None:
        pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    first = 2 if text and "sv" in name else 1  # a header stands on the first line
    for path in (tmp_path / name, tmp_path):
        assert list(read_pairs(str(path), "")) == [
            PairLine(f"{tmp_path}/{name}:{first + i}", f"q{i + 1}", f"p{i + 1}", None, (f"n{i + 1}",)) for i in range(2)
        ]


def test_lists_of_positives_make_a_pair_each_and_columns_may_be_named(tmp_path: Path) -> None:
    table = pa.table({"q": ["ask"], "text": [["one", "two"]], "hard": [["no", " ", "never"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = PairColumns(query="q", positive="text", negative="hard")
    found = list(read_pairs(str(tmp_path / "a.parquet"), "", columns))
    assert [line[1:] for line in found] == [("ask", text, None, ("no", "never")) for text in ("one", "two")]


def test_negatives_may_lie_in_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("anchor,positive,negative_1,negative_2,b\nask,yes,no,never,nay\nsay,so,,nope,\n")
    assert [line.negatives for line in read_pairs(str(path), "")] == [("no", "never"), ("nope",)]
    for given, found in ((["b", "negative_1"], [("nay", "no"), ()]), ("b", [("nay",), ()])):
        columns = PairColumns.parse({"negative": given})
        assert [line.negatives for line in read_pairs(str(path), "", columns)] == found


def test_pairs_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as bucket:
        storage.write_bytes(f"{bucket}/p/a.jsonl.gz", gzip.compress(json.dumps(RECORDS[0]).encode()))
        assert [line.query for line in read_pairs(f"{bucket}/p", "")] == ["q1"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(map(json.dumps, RECORDS * 99)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    for name in ("a.jsonl.gz", "b.parquet"):
        with pytest.raises(UserError, match=name):
            list(read_pairs(str(tmp_path / name), ""))


def test_no_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a jsonl, csv or Parquet file"):
        list(read_pairs(str(tmp_path / "none.jsonl"), ""))
