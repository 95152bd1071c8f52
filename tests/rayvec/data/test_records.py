"""Records: what is refused, and why. Each fault is written in every format that can hold it."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec.data.json_types import infer_types, kinds_of
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
        (b'{"id": "x", "text": NaN}', "missing_text", "x"),
        (b'{"id": "x", "text": [5]}', "bad_value", "x"),
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
        (b'{"id": 7.0, "text": "a"}', "7", "a"),
        (b'{"id": "x", "text": "a\\u0000b"}', "x", "a\0b"),
        (b'{"id": "x", "text": "a"}\r', "x", "a"),
        ('{"id": "e\u0301/../\U0001f600", "text": "\u202eabc"}'.encode(), "e\u0301/../\U0001f600", "\u202eabc"),
        (b'{"id": "x", "text": "' + b"w" * (1 << 20) + b'"}', "x", "w" * (1 << 20)),
        (b'{"id": "x", "text": "\\ud83d\\ude00"}', "x", "\U0001f600"),
        (b'{"id": "x", "text": 1984}', "x", "1984"),
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
        ([[], ["a", None]], pa.list_(pa.string())),
        ([[1, None], []], pa.list_(pa.int64())),
        ([[1], [2.5]], pa.list_(pa.float64())),
        ([[1, 2.5]], pa.list_(pa.float64())),
        ([[True]], pa.list_(pa.bool_())),
        ([[True, 1]], pa.string()),
        ([[1], ["a"]], pa.string()),
        ([[], 1], pa.string()),
        ([[{"a": 1}]], pa.string()),
        ([{"a": 1}], pa.string()),
        ([None], pa.string()),
    ],
)
def test_payload_types_come_from_the_first_records(values: list[Any], type_: pa.DataType) -> None:
    assert infer_types(kinds_of({"x": value} for value in values)) == {"x": type_}


def read_after_the_sample(path: Path, name: str, usual: Any, odd: Any) -> UnitData:
    """The odd record stands where none of the samples that decide on the types is taken."""
    lines = [json.dumps({**GOOD, name: usual})] * 4200 + [json.dumps({**GOOD, name: odd})]
    path.write_text("\n".join(lines))
    source = open_source(SourceConfig(path=str(path), payload=(name,)))
    (unit,) = source.units(5000)
    return source.read(unit)


@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        (2024, 1.5),
        (2024, "MMXXIV"),
        (2024, True),
        (2024, 2**63),
        (2024, [1]),
        (True, 1),
        ("a", "\ud800"),
        (["a"], {}),
        ([1], ["x", 2]),
    ],
)
def test_a_payload_value_that_does_not_fit_is_null_and_counted(tmp_path: Path, usual: Any, odd: Any) -> None:
    data = read_after_the_sample(tmp_path / "c.jsonl", "year", usual, odd)
    assert data.table["year"].to_pylist()[-2:] == [usual, None]
    assert (data.rejected, data.nulled) == ([], {"year": 1})


@pytest.mark.parametrize(
    ("usual", "odd", "found"),
    [
        (2024, 3.0, 3),
        (2024, "12", 12),
        (1.5, 3, 3.0),
        ("a", {"b": 1}, '{"b": 1}'),
        (["a"], [1], ["1"]),
        ([1], [2.0, None], [2, None]),
        ([1.5], [1], [1.0]),
    ],
)
def test_a_payload_value_that_can_be_made_to_fit_is_kept(tmp_path: Path, usual: Any, odd: Any, found: Any) -> None:
    data = read_after_the_sample(tmp_path / "c.jsonl", "year", usual, odd)
    assert data.table["year"].to_pylist()[-1] == found
    assert not data.nulled


def test_a_column_that_the_sample_does_not_have_is_read_where_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join([json.dumps(GOOD)] * 1000 + [json.dumps({**GOOD, "note": "n"})]))
    assert read_in_one(path, payload=("note",)).table["note"].to_pylist()[-2:] == [None, "n"]


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_what_begins_after_the_first_records_is_known_to_the_plan(tmp_path: Path, name: str) -> None:
    first = [{**GOOD, "price": 10}] * 1000
    later = [{**GOOD, "price": 9.99, "brand": "b"}] * 20_000
    data = "".join(json.dumps(record) + "\n" for record in [*first, *later]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    source = open_source(SourceConfig(path=str(tmp_path / name), payload="all"))
    assert source.layout.payload == (("price", pa.float64()), ("brand", pa.string()))
    assert open_source(source.config).layout == source.layout, "two plans agree"


def test_values_of_columns_that_the_plan_did_not_know_are_counted(tmp_path: Path) -> None:
    records = [{**GOOD, "year": 1}] * 4200 + [{**GOOD, "year": None, "brand": "b", "none": None}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    data = read_in_one(tmp_path / "c.jsonl", payload="all")
    assert data.counts == {"nulled": {}, "given": {"year": 4200}, "later": {"brand": 1}}


@pytest.mark.parametrize(("type_", "value", "text"), [(pa.int16(), 7, "7"), (pa.float32(), 0.1, "0.1")])
def test_titles_and_texts_of_parquet_may_be_numbers(tmp_path: Path, type_: pa.DataType, value: Any, text: str) -> None:
    column = pa.array([value, None], type_)
    pq.write_table(pa.table({"id": ["a", "b"], "text": column, "title": column}), tmp_path / "c.parquet")
    data = read_in_one(tmp_path / "c.parquet")
    assert data.table.select(["title", "text"]).to_pylist() == [{"title": text, "text": text}]
    assert [refused.reason for refused in data.rejected] == ["missing_text"]


def read_in_one(path: Path, **options: Any) -> UnitData:
    source = open_source(SourceConfig(path=str(path), **options))
    return UnitData.joined([source.read(unit) for unit in source.units(5000)])


def test_types_come_from_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**GOOD, "score": 3}))
    (tmp_path / "b.jsonl").write_text(json.dumps({**GOOD, "score": 3.5, "note": "n"}))
    rows = read_in_one(tmp_path, payload="all").table
    assert rows["score"].to_pylist() == [3.0, 3.5]
    assert rows["note"].to_pylist() == [None, "n"]


@pytest.mark.parametrize(("name", "given"), [("c.jsonl", [None, "", "x"]), ("c.csv", ["", "", "x"])])
def test_missing_ids_are_made_where_that_is_asked(tmp_path: Path, name: str, given: list[str | None]) -> None:
    path = tmp_path / name
    if name == "c.csv":
        path.write_text("id,text\n" + "".join(f"{id_},words\n" for id_ in given))
    else:
        path.write_text("".join(json.dumps({"id": id_, "text": "words"}) + "\n" for id_ in given))
    first = 2 if name == "c.csv" else 1
    made = read_in_one(path, missing_id="make").table["id"].to_pylist()
    assert made == [f"{name}:{first}", f"{name}:{first + 1}", "x"]
    assert [refused.reason for refused in read_in_one(path).rejected] == ["bad_id"] * 2


def test_missing_ids_of_parquet_are_made_where_that_is_asked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([1.0, None]), "text": ["a", "b"]}), tmp_path / "c.parquet")
    assert read_in_one(tmp_path / "c.parquet", missing_id="make").table["id"].to_pylist() == ["1", "c.parquet:1"]


def test_ids_made_of_the_content_are_the_same_in_every_format_and_place(tmp_path: Path) -> None:
    rows = [{"title": "T", "text": "a"}, {"title": None, "text": "é"}]
    for folder in ("day1", "day2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.jsonl").write_text("\n\n".join(map(json.dumps, reversed(rows))))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / folder / "c.parquet")
    paths = [tmp_path / folder / name for folder in ("day1", "day2") for name in ("c.jsonl", "c.parquet")]
    ids = [set(read_in_one(path, make_ids="content").table["id"].to_pylist()) for path in paths]
    assert len(ids[0]) == 2 and all(one == ids[0] for one in ids)


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


def test_columns_inside_json_objects_are_named_by_their_path(tmp_path: Path) -> None:
    records = [{"meta": {"key": 7, "text": "a", "in": {"n": 1}}}, {"meta": {"key": 8, "text": "b"}}, {"meta": []}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    names = {"id_column": "meta.key", "text_columns": ("meta.text",), "payload": ("meta.in.n",)}
    data = read_in_one(tmp_path / "c.jsonl", **names)
    assert data.table.drop_columns(["title", "position"]).to_pylist() == [
        {"id": "7", "text": "a", "meta.in.n": 1},
        {"id": "8", "text": "b", "meta.in.n": None},
    ]
    assert [refused.reason for refused in data.rejected] == ["missing_text"]
