"""Parquet: units by row groups, damage by row group, the types that columns may have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec.data.sources import Source, SourceConfig, open_source
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
    path = save(tmp_path / "c.parquet", pa.table({"id": [1.5], "text": ["a"]}))
    with pytest.raises(UserError, match="'id' is double, and an id is text or a whole number"):
        open_source(SourceConfig(path=str(path)))


def test_files_must_agree_on_the_payload(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", documents(1).append_column("year", pa.array([2024])))
    save(tmp_path / "b.parquet", documents(1).append_column("year", pa.array(["2024"])))
    with pytest.raises(UserError, match=r"b\.parquet: column 'year' has another type than in .*a\.parquet"):
        open_source(SourceConfig(path=str(tmp_path), payload=("year",)))


def test_payload_keeps_its_types(tmp_path: Path) -> None:
    table = documents(2).append_column("tags", pa.array([["a"], None])).append_column("n", pa.array([1, 2], pa.int16()))
    source = open_source(SourceConfig(path=str(save(tmp_path / "c.parquet", table)), payload="all"))
    assert source.payload == ["tags", "n"]
    read = source.read(source.units(10)[0]).table
    assert read.select(["tags", "n"]).equals(table.select(["tags", "n"]))
