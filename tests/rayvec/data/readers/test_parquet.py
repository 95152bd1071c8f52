"""Parquet: units by row groups, damage by row group, the types that columns may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec.data.sources import Source, SourceConfig, UnitData, open_source
from rayvec.errors import UserError


def save(path: Path, table: pa.Table, rows: int = 10) -> Path:
    pq.write_table(table, path, row_group_size=rows, write_page_checksum=True, compression="none", use_dictionary=False)
    return path


def documents(count: int) -> pa.Table:
    return pa.table({"id": [f"d{i}" for i in range(count)], "text": [f"the text number {i}" for i in range(count)]})


def ranges(source: Source, unit_rows: int) -> list[tuple[int, int]]:
    return [(unit.start, unit.stop) for unit in source.units(unit_rows)]


@pytest.mark.parametrize(
    ("unit_rows", "expected"),
    [(25, [(0, 20), (20, 35)]), (10, [(0, 10), (10, 20), (20, 30), (30, 35)]), (1000, [(0, 35)])],
)
def test_small_row_groups_are_put_together(tmp_path: Path, unit_rows: int, expected: list[tuple[int, int]]) -> None:
    source = open_source(SourceConfig(path=str(save(tmp_path / "c.parquet", documents(35)))))
    assert ranges(source, unit_rows) == expected


def test_a_large_row_group_is_cut_evenly(tmp_path: Path) -> None:
    source = open_source(SourceConfig(path=str(save(tmp_path / "c.parquet", documents(25), 100))))
    assert ranges(source, 10) == [(0, 8), (8, 16), (16, 25)]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "c.parquet", documents(30))
    data = bytearray(path.read_bytes())
    data[data.index(b"the text number 15") + 4] ^= 1
    path.write_bytes(data)
    source = open_source(SourceConfig(path=str(path)))
    (unit,) = source.units(1000)
    read = source.read(unit)
    assert read.table["position"].to_pylist() == [*range(10), *range(20, 30)]
    assert [(r.reason, r.position) for r in read.rejected] == [("damaged", row) for row in range(10, 20)]
    assert "row group 1 cannot be read" in read.rejected[0].detail


def test_a_flipped_bit_in_the_text_is_no_document(tmp_path: Path) -> None:
    """Without the pages' checksums the row would be read, with a wrong letter."""
    path = save(tmp_path / "c.parquet", documents(3))
    path.write_bytes(path.read_bytes().replace(b"the text number 1", b"the text number 7"))
    source = open_source(SourceConfig(path=str(path)))
    assert len(source.read(source.units(10)[0]).table) == 0


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_may_be_of_any_text_type(tmp_path: Path, type_: pa.DataType) -> None:
    table = pa.table({"id": pa.array([1, 2]), "text": pa.array(["a", "é"], pa.string()).cast(type_)})
    source = open_source(SourceConfig(path=str(save(tmp_path / "c.parquet", table))))
    read = source.read(source.units(10)[0]).table
    assert read.select(["id", "text"]).to_pylist() == [{"id": "1", "text": "a"}, {"id": "2", "text": "é"}]


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"\xff", b"c"])
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    table = pa.table({"id": ["1", "2", "3"], "text": text})
    source = open_source(SourceConfig(path=str(save(tmp_path / "c.parquet", table))))
    read = source.read(source.units(10)[0])
    assert read.table["id"].to_pylist() == ["1", "3"]
    assert [(r.reason, r.id) for r in read.rejected] == [("invalid_utf8", "2")]


def test_an_id_of_another_type_is_refused_before_the_work(tmp_path: Path) -> None:
    path = save(tmp_path / "c.parquet", pa.table({"id": [True], "text": ["a"]}))
    with pytest.raises(UserError, match="'id' is bool, and an id is text or a whole number"):
        open_source(SourceConfig(path=str(path)))


def everything(path: Path, **options: Any) -> UnitData:
    source = open_source(SourceConfig.parse({"path": str(path), **options}))
    return UnitData.joined([source.read(unit) for unit in source.units(1000)])


def test_whole_numbers_that_pandas_made_floats_are_ids_and_its_gaps_are_missing(tmp_path: Path) -> None:
    table = pa.table({"id": [1.0, float("nan"), 3.0, None, 1.5], "text": list("abcde")})
    data = everything(save(tmp_path / "c.parquet", table))
    assert data.table["id"].to_pylist() == ["1", "3"]
    assert [(refused.reason, refused.position) for refused in data.rejected] == [
        ("bad_id", 1),
        ("bad_id", 3),
        ("bad_id", 4),
    ]


NS, US = pa.timestamp("ns"), pa.timestamp("us")


@pytest.mark.parametrize(
    ("first", "second", "type_", "values"),
    [
        (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64(), [1, 2**40]),
        (pa.array([1]), pa.array([2.5]), pa.float64(), [1.0, 2.5]),
        (pa.nulls(1), pa.array([7]), pa.int64(), [None, 7]),
        (pa.nulls(1), pa.nulls(1), pa.string(), [None, None]),
        (pa.array([2024]), pa.array(["2024"]), pa.string(), ["2024", "2024"]),
        (pa.array([{"a": 1}]), pa.array(["x"]), pa.string(), ['{"a": 1}', "x"]),
        (pa.array([["a"]]), pa.array([None], pa.list_(pa.null())), pa.list_(pa.string()), [["a"], None]),
        (pa.array([{"a": 1}]), pa.array([{"b": 2}]), None, [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        (pa.array(["x"]).dictionary_encode(), pa.array(["y"]), pa.string(), ["x", "y"]),
        (pa.array(["x"]).dictionary_encode(), pa.array(["y"]).dictionary_encode(), pa.string(), ["x", "y"]),
        (pa.array([1], US), pa.array([2000], NS), NS, None),
    ],
)
def test_types_that_differ_between_files_become_one(
    tmp_path: Path, first: pa.Array, second: pa.Array, type_: pa.DataType | None, values: list[Any] | None
) -> None:
    save(tmp_path / "a.parquet", documents(1).append_column("x", first))
    save(tmp_path / "b.parquet", documents(1).append_column("x", second))
    data = everything(tmp_path, payload=["x"])
    assert not data.rejected and not data.nulled
    assert type_ is None or data.table["x"].type == type_
    assert values is None or data.table["x"].to_pylist() == values


def test_a_value_that_no_type_of_all_files_can_hold_is_null_and_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", documents(1).append_column("x", pa.array([1.5])))
    save(tmp_path / "b.parquet", documents(2).append_column("x", pa.array([2**60 + 1, 4])))
    data = everything(tmp_path, payload=["x"])
    assert data.table["x"].to_pylist() == [1.5, None, 4.0]
    assert data.nulled == {"x": 1}


def test_a_file_may_lack_a_title_and_payload_that_others_have(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", documents(1))
    save(tmp_path / "b.parquet", documents(1).append_column("title", [["T"]]).append_column("x", [[1]]))
    rows = everything(tmp_path, payload="all").table
    assert rows["title"].to_pylist() == [None, "T"]
    assert rows["x"].to_pylist() == [None, 1]


@pytest.mark.parametrize("lacks", ["id", "text"])
def test_a_file_without_id_or_text_is_refused_by_name_or_its_records_are(tmp_path: Path, lacks: str) -> None:
    save(tmp_path / "a.parquet", documents(1))
    save(tmp_path / "b.parquet", documents(2).append_column("x", [[1, 2]]).drop_columns([lacks]))
    with pytest.raises(UserError, match=rf"b\.parquet has no column '{lacks}', which other files have; "):
        everything(tmp_path)
    data = everything(tmp_path, on_bad_input="quarantine")
    assert len(data.table) == 1
    assert {refused.reason for refused in data.rejected} == {{"id": "bad_id", "text": "missing_text"}[lacks]}


def test_columns_inside_others_are_named_by_their_path(tmp_path: Path) -> None:
    meta = [{"key": "k1", "text": "a", "in": {"lang": "de"}}, None, {"key": "k3", "text": "c", "in": None}]
    path = save(tmp_path / "c.parquet", pa.table({"meta": meta, "body.text": ["x", "y", "z"]}))
    names = {"id_column": "meta.key", "text_columns": ["meta.text", "body.text"], "payload": ["meta.in.lang"]}
    data = everything(path, **names)
    assert data.table.drop_columns(["title", "position"]).to_pylist() == [
        {"id": "k1", "text": "a\nx", "meta.in.lang": "de"},
        {"id": "k3", "text": "c\nz", "meta.in.lang": None},
    ]
    with pytest.raises(UserError, match=r"not text; name another one, or one inside of it: 'meta\.key'"):
        everything(path, text_columns=["meta"])


def test_small_files_share_a_unit_and_keep_their_places(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 3), ("c", 9), ("d", 1)):
        save(tmp_path / f"{name}.parquet", pa.table({"text": [*(f"{name}{i}" for i in range(count - 1)), None]}))
    source = open_source(SourceConfig(path=str(tmp_path)))
    units = source.units(7)
    assert [len(unit.files) for unit in units] == [2, 0, 0, 0]
    assert units == open_source(SourceConfig(path=str(tmp_path))).units(7)
    data = source.read(units[0])
    assert data.table["id"].to_pylist() == ["a.parquet:0", "a.parquet:1", "b.parquet:0", "b.parquet:1"]
    places = [units[0].place(refused.position) for refused in data.rejected]
    assert places == [(f"{tmp_path}/a.parquet", 2), (f"{tmp_path}/b.parquet", 2)]


def test_payload_keeps_its_types(tmp_path: Path) -> None:
    table = documents(2).append_column("tags", pa.array([["a"], None])).append_column("n", pa.array([1, 2], pa.int16()))
    source = open_source(SourceConfig(path=str(save(tmp_path / "c.parquet", table)), payload="all"))
    assert source.payload == ["tags", "n"]
    read = source.read(source.units(10)[0]).table
    assert read.select(["tags", "n"]).equals(table.select(["tags", "n"]))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "c.parquet", pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]))
    with pytest.raises(UserError, match="names column 'text' more than once"):
        open_source(SourceConfig(path=str(path)))
