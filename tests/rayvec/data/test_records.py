"""Records: what is refused, and why. Each fault is written in every format that can hold it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec.data.records import infer_types
from rayvec.data.sources import Rejected, SourceConfig, UnitData, open_source

GOOD = {"id": "good", "title": "T", "text": "words"}


def read(path: Path, **options: Any) -> UnitData:
    source = open_source(SourceConfig(path=str(path), **options))
    (unit,) = source.units(1000)
    return source.read(unit)


def read_line(folder: Path, line: bytes, **options: Any) -> UnitData:
    """A line between two good records."""
    path = folder / "c.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    return read(path, **options)


@pytest.mark.parametrize(
    ("line", "reason", "id_"),
    [
        (b'{"id": "x", "text": "a"', "invalid_json", None),
        (b'["x", "a"]', "invalid_json", None),
        (b'{"a":' * 100_000, "invalid_json", None),
        (b'{"id": "x", "text": "a\xff"}', "invalid_utf8", None),
        (b'{"id": "x", "text": "a\\ud800"}', "invalid_utf8", "x"),
        (b'{"id": "\\udfff", "text": "a"}', "invalid_utf8", None),
        (b'{"id": "x", "title": "T"}', "missing_text", "x"),
        (b'{"id": "x", "text": null}', "missing_text", "x"),
        (b'{"id": "x", "text": ""}', "empty_text", "x"),
        (b'{"id": "x", "text": " \\t\\n"}', "empty_text", "x"),
        ('{"id": "x", "text": "\u200b \ufeff\u00a0\u3000"}'.encode(), "empty_text", "x"),
        (b'{"id": "x", "text": 5}', "bad_value", "x"),
        (b'{"id": "x", "text": "a", "title": []}', "bad_value", "x"),
        (b'{"id": null, "text": "a"}', "bad_id", None),
        (b'{"text": "a"}', "bad_id", None),
        (b'{"id": "", "text": "a"}', "bad_id", None),
        (b'{"id": 1.5, "text": "a"}', "bad_id", None),
        (b'{"id": true, "text": "a"}', "bad_id", None),
        (b'{"id": "' + b"x" * 513 + b'", "text": "a"}', "bad_id", None),
    ],
)
def test_a_bad_line_is_refused_and_the_rest_goes_on(tmp_path: Path, line: bytes, reason: str, id_: str | None) -> None:
    data = read_line(tmp_path, line)
    assert [(r.reason, r.position, r.offset, r.id) for r in data.rejected] == [
        (reason, 2, len(json.dumps(GOOD)) + 1, id_)
    ]
    assert data.table["position"].to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("line", "id_", "text"),
    [
        (b'{"id": 12345678901234567890123, "text": "a"}', "12345678901234567890123", "a"),
        (b'{"id": "x", "text": "a\\u0000b"}', "x", "a\0b"),
        (b'{"id": "x", "text": "a"}\r', "x", "a"),
        ('{"id": "e\u0301/../\U0001f600", "text": "\u202eabc"}'.encode(), "e\u0301/../\U0001f600", "\u202eabc"),
        (b'{"id": "x", "text": "' + b"w" * (1 << 20) + b'"}', "x", "w" * (1 << 20)),
        (b'{"id": "x", "text": "\\ud83d\\ude00"}', "x", "\U0001f600"),
    ],
)
def test_an_unusual_line_is_taken_as_it_is(tmp_path: Path, line: bytes, id_: str, text: str) -> None:
    row = read_line(tmp_path, line).table.to_pylist()[1]
    assert (row["id"], row["text"]) == (id_, text)


def test_the_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read(tmp_path / "c.jsonl").table["id"].to_pylist() == ["good"]


def test_a_record_over_the_limit_is_refused(tmp_path: Path) -> None:
    data = read_line(tmp_path, b'{"id": "x", "text": "' + b"w" * 1000 + b'"}', max_record_bytes=500)
    assert [(r.reason, r.detail) for r in data.rejected] == [("record_too_large", "1023 bytes")]


def test_the_refused_text_is_told_by_its_hash_alone(tmp_path: Path) -> None:
    (rejected,) = read_line(tmp_path, b'{"id": "x", "text": "  "}').rejected
    assert rejected.text_sha256 == hashlib.sha256(b"  ").hexdigest()


def test_a_reason_outside_the_table_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        Rejected(0, None, "no such reason")


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, False], pa.bool_()),
        ([True, 1], pa.string()),
        ([["a"], []], pa.list_(pa.string())),
        ([{"a": 1}], pa.string()),
        ([None], pa.string()),
    ],
)
def test_payload_types_come_from_the_first_records(values: list[Any], type_: pa.DataType) -> None:
    assert infer_types([{"x": value} for value in values]) == {"x": type_}


@pytest.mark.parametrize("value", [1.5, "1", True, 2**63, [1]])
def test_a_payload_value_of_another_type_is_refused(tmp_path: Path, value: Any) -> None:
    records = [{**GOOD, "year": 2024}, {**GOOD, "year": 2025}]
    path = tmp_path / "c.jsonl"
    # The sample that decides on the types ends before the odd record.
    lines = [json.dumps(record) for record in records * 500] + [json.dumps({**GOOD, "year": value})]
    path.write_text("\n".join(lines))
    source = open_source(SourceConfig(path=str(path), payload=("year",)))
    (unit,) = source.units(5000)
    assert [(r.reason, r.position) for r in source.read(unit).rejected] == [("bad_value", 1001)]


def test_nested_payload_is_carried_as_json(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({**GOOD, "meta": {"é": [1, None]}}))
    assert read(path, payload="all").table["meta"].to_pylist() == ['{"é": [1, null]}']


PARQUET_FAULTS = [
    ({"id": None}, "bad_id"),
    ({"id": ""}, "bad_id"),
    ({"id": "x" * 513}, "bad_id"),
    ({"text": None}, "missing_text"),
    ({"text": "\u200b "}, "empty_text"),
    ({"text": "w" * 700}, "record_too_large"),
]


@pytest.mark.parametrize(("fault", "reason"), PARQUET_FAULTS)
def test_a_bad_parquet_row_is_refused_and_the_rest_goes_on(tmp_path: Path, fault: dict[str, Any], reason: str) -> None:
    pq.write_table(pa.Table.from_pylist([GOOD, {**GOOD, "id": "x", **fault}, GOOD]), tmp_path / "c.parquet")
    data = read(tmp_path / "c.parquet", max_record_bytes=600)
    assert [(r.reason, r.position, r.id) for r in data.rejected] == [(reason, 1, None if reason == "bad_id" else "x")]
    assert data.table["position"].to_pylist() == [0, 2]
