"""csv and tsv: quotes, line feeds in fields, and what a broken quote costs."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from rayvec.data.sources import SourceConfig, UnitData, open_source


def read(folder: Path, data: bytes, unit_rows: int = 1000, name: str = "c.csv", **options: Any) -> UnitData:
    (folder / name).write_bytes(data)
    source = open_source(SourceConfig(path=str(folder / name), **options))
    parts = [source.read(unit) for unit in source.units(unit_rows)]
    rows = [row for part in parts for row in part.table.to_pylist()]
    return UnitData(
        parts[0].table.from_pylist(rows, schema=parts[0].table.schema), [r for p in parts for r in p.rejected]
    )


@pytest.mark.parametrize("unit_rows", [1, 2, 1000])
def test_a_field_in_quotes_may_hold_line_feeds(tmp_path: Path, unit_rows: int) -> None:
    data = read(tmp_path, b'id,text\r\n1,"a\r\nb"\r\n2,"say ""c"",\n\nd"\r\n\r\n3,e\r\n', unit_rows)
    assert data.table["text"].to_pylist() == ["a\r\nb", 'say "c",\n\nd', "e"]
    assert data.table["position"].to_pylist() == [2, 4, 8]


@pytest.mark.parametrize("unit_rows", [1, 2, 1000])
def test_a_quote_that_is_never_closed_costs_its_own_line(tmp_path: Path, unit_rows: int) -> None:
    data = read(tmp_path, b'id,text\n1,a\n2,"b\n3,c\n4,d\n', unit_rows)
    assert data.table["id"].to_pylist() == ["1", "3", "4"]
    assert [(r.position, r.offset, r.reason) for r in data.rejected] == [(3, 12, "invalid_csv")]


def test_an_open_quote_before_much_text_costs_its_own_line(tmp_path: Path) -> None:
    data = read(tmp_path, b'id,text\n1,"a\n' + b"2,bbbbbbbb\n" * 50, max_record_bytes=100)
    assert [r.reason for r in data.rejected] == ["record_too_large"]
    assert len(data.table) == 50


@pytest.mark.parametrize(
    ("line", "reason"), [(b"2", "invalid_csv"), (b"2,b,c", "invalid_csv"), (b"2,\xff", "invalid_utf8")]
)
def test_a_bad_record_is_refused_and_the_rest_goes_on(tmp_path: Path, line: bytes, reason: str) -> None:
    data = read(tmp_path, b"id,text\n1,a\n" + line + b"\n3,c\n")
    assert data.table["id"].to_pylist() == ["1", "3"]
    assert [(r.position, r.offset, r.reason) for r in data.rejected] == [(3, 12, reason)]


def test_a_large_field_is_no_problem(tmp_path: Path) -> None:
    data = read(tmp_path, b"id,text\n1," + b"w" * (1 << 20) + b"\n")
    assert len(data.table["text"][0].as_py()) == 1 << 20


def test_quotes_can_be_ordinary_signs(tmp_path: Path) -> None:
    data = read(tmp_path, b'id\ttext\n1\t"a\n2\tb"\n', name="c.tsv", quotes=False)
    assert data.table["text"].to_pylist() == ['"a', 'b"']


def test_a_file_without_header_gets_its_columns_named(tmp_path: Path) -> None:
    data = read(tmp_path, b"1;a\n2;b\n", column_names=("id", "text"), delimiter=";")
    assert data.table.select(["id", "text"]).to_pylist() == [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]


def test_files_may_have_their_columns_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,a\n")
    (tmp_path / "b.csv").write_bytes(b"text,id\nb,2\n")
    source = open_source(SourceConfig(path=str(tmp_path)))
    rows = [row for unit in source.units(10) for row in source.read(unit).table.to_pylist()]
    assert [(row["id"], row["text"]) for row in rows] == [("1", "a"), ("2", "b")]


def test_a_column_without_a_name_gets_one(tmp_path: Path) -> None:
    data = read(tmp_path, b",text\n0,a\n", payload="all")
    assert data.table.drop_columns(["id", "title", "position"]).to_pylist() == [{"text": "a", "Unnamed: 0": "0"}]


def test_a_file_may_lack_columns_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,a\n")
    (tmp_path / "b.csv").write_bytes(b"id,text,year\n2,b,2024\n")
    source = open_source(SourceConfig(path=str(tmp_path), payload="all"))
    rows = [row for unit in source.units(10) for row in source.read(unit).table.to_pylist()]
    assert [(row["id"], row["year"]) for row in rows] == [("1", None), ("2", "2024")]


def test_a_truncated_gzip_keeps_what_stands_before_the_damage(tmp_path: Path) -> None:
    whole = gzip.compress(b"id,text\n" + b"".join(b"%d,text %d\n" % (i, i * 7919 % 9973) for i in range(40_000)))
    data = read(tmp_path, whole[:-4000], 5000, "c.csv.gz", on_bad_input="quarantine")
    assert [r.reason for r in data.rejected] == ["damaged"]
    assert data.table["id"].to_pylist() == [str(i) for i in range(len(data.table))]
    assert len(data.table) > 20_000
