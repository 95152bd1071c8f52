"""Filters: which documents pass, and what is refused."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rayvec.errors import UserError
from rayvec.indexing.filters import MAX_CONDITIONS, MAX_DEPTH, Filter, check, mask

ADAPTER: TypeAdapter[Filter] = TypeAdapter(Filter)
ROWS: dict[str, pa.Array] = {
    "lang": pa.array(["en", "de", None, "en"]),
    "year": pa.array([2019, 2024, 2025, None], pa.int32()),
    "score": pa.array([0.5, 1.0, -2.0, 0.25]),
    "open": pa.array([True, False, None, True]),
    "tags": pa.array([["a", "b"], [], ["b"], None]),
    "seen": pa.array([datetime.date(2025, 1, day) for day in (1, 2, 3, 4)]),
    "ratio": pa.array([0.5, None, float("nan"), -0.0]),
    "pairs": pa.array([[1, 2], None, [None, None], [None, 3]], pa.list_(pa.int8(), 2)),
    "struct": pa.array([{"a": 1}, None, {"a": None}, None]),
    "category": pa.array(["x", "y", None, "x"]).dictionary_encode(),
    # About 2^53, above which a float stands for several whole numbers.
    "ts_ns": pa.array([2**53 - 1, 2**53, 2**53 + 1, None], pa.int64()),
    "stamps": pa.array([[2**53 + 1], [2**53], [], None], pa.list_(pa.int64())),
    "price": pa.array([*map(Decimal, ("9.99", "10.00", "10.01")), None], pa.decimal128(4, 2)),
    "noon": pa.array([datetime.time(hour) for hour in (1, 11, 12, 13)], pa.time64("us")),
    "naive": pa.array([datetime.datetime(2024, 1, day) for day in (1, 5, 6, 7)], pa.timestamp("us")),
    "zoned": pa.array([datetime.datetime(2024, 1, day) for day in (1, 5, 6, 7)], pa.timestamp("ns", "UTC")),
    "large": pa.array([0, 2**63, 2**64 - 1, None], pa.uint64()),
}


def column(name: str) -> pa.ChunkedArray:
    if name not in ROWS:
        raise UserError(f"unknown column {name!r}")
    return pa.chunked_array([ROWS[name][:1], ROWS[name][1:]])


def passing(filter_: Any) -> list[int]:
    return [row for row, good in enumerate(mask(ADAPTER.validate_python(filter_), column).to_pylist()) if good]


@pytest.mark.parametrize(
    ("filter_", "rows"),
    [
        ({"field": "lang", "eq": "en"}, [0, 3]),
        ({"field": "lang", "ne": "en"}, [1]),
        ({"not": {"field": "lang", "eq": "en"}}, [1, 2]),
        ({"field": "lang", "in": ["de", "fr"]}, [1]),
        ({"field": "year", "gte": 2019, "lt": 2025}, [0, 1]),
        ({"field": "year", "gt": 2019.5}, [1, 2]),
        ({"field": "year", "in": [2019.0, 0.5]}, [0]),
        ({"field": "year", "gte": 2023.5, "lt": 2024.5}, [1]),
        ({"field": "year", "lte": 2024.5, "ne": 2019.0}, [1]),
        ({"field": "year", "lt": 1e300, "gt": -1e300}, [0, 1, 2]),
        ({"field": "year", "lt": 2**40, "gte": -(2**40)}, [0, 1, 2]),
        ({"field": "year", "gt": 2**40}, []),
        ({"field": "large", "gte": -1}, [0, 1, 2]),
        ({"field": "year", "in": [2**40, 2024]}, [1]),
        ({"field": "price", "lt": 10}, [0]),
        ({"field": "price", "lte": 10.005, "ne": "9.99"}, [1]),
        ({"field": "price", "gt": 10.005}, [2]),
        ({"field": "price", "gte": "10.00"}, [1, 2]),
        ({"field": "price", "in": [10, 10.01, 10.011, 1e9]}, [1, 2]),
        ({"field": "price", "lt": 1e9}, [0, 1, 2]),
        ({"field": "noon", "gte": "11:00", "lt": "12:30:00"}, [1, 2]),
        ({"field": "naive", "gte": "2024-01-05", "lt": "2024-01-06T12:00"}, [1, 2]),
        ({"field": "zoned", "gt": "2024-01-05T01:00:00+01:00"}, [2, 3]),
        ({"or": [{"field": "year", "gte": 1e300}, {"field": "year", "lte": -1e300}]}, []),
        ({"field": "ts_ns", "eq": 2.0**53}, [1]),
        ({"field": "ts_ns", "eq": 2**53 + 1}, [2]),
        ({"field": "ts_ns", "ne": 2.0**53}, [0, 2]),
        ({"field": "ts_ns", "in": [2.0**53, 0.5, 1e300]}, [1]),
        ({"field": "ts_ns", "gt": 2.0**53}, [2]),
        ({"field": "ts_ns", "gte": 2.0**53}, [1, 2]),
        ({"field": "ts_ns", "lt": 2.0**53}, [0]),
        ({"field": "ts_ns", "lte": 2.0**53}, [0, 1]),
        ({"field": "ts_ns", "lte": 1.7e18}, [0, 1, 2]),
        ({"field": "stamps", "eq": 2.0**53}, [1]),
        ({"field": "large", "gte": 2.0**63, "gt": -1.5}, [1, 2]),
        ({"field": "score", "lte": 1}, [0, 1, 2, 3]),
        ({"field": "open", "eq": True}, [0, 3]),
        ({"field": "tags", "eq": "b"}, [0, 2]),
        ({"field": "tags", "in": ["a"]}, [0]),
        ({"field": "tags", "ne": "b"}, [1]),
        ({"field": "seen", "gte": "2025-01-03"}, [2, 3]),
        ({"field": "lang", "exists": True}, [0, 1, 3]),
        ({"field": "lang", "exists": False}, [2]),
        ({"field": "year", "exists": False}, [3]),
        ({"field": "open", "exists": True, "ne": True}, [1]),
        ({"field": "ratio", "exists": False}, [1, 2]),
        ({"field": "tags", "exists": True}, [0, 2]),
        ({"field": "tags", "exists": False}, [1, 3]),
        ({"field": "pairs", "exists": True}, [0, 3]),
        ({"field": "seen", "exists": True}, [0, 1, 2, 3]),
        ({"field": "struct", "exists": False}, [1, 3]),
        ({"not": {"field": "category", "exists": True}}, [2]),
        ({"and": [{"field": "lang", "eq": "en"}, {"field": "year", "lt": 2020}]}, [0]),
        ({"or": [{"field": "lang", "eq": "de"}, {"not": {"field": "open", "eq": True}}]}, [1, 2]),
    ],
)
def test_documents_that_pass(filter_: Any, rows: list[int]) -> None:
    assert passing(filter_) == rows


@pytest.mark.parametrize(
    ("filter_", "told"),
    [
        ({"field": "nope", "eq": 1}, "unknown column"),
        ({"field": "year", "eq": "2024"}, "year is a column of int32"),
        ({"field": "year", "eq": True}, "year is a column of int32, and cannot be compared with true$"),
        ({"field": "price", "lt": "cheap"}, '"cheap" is none of its values'),
        ({"field": "price", "lt": True}, "cannot be compared with true"),
        ({"field": "noon", "lt": "late"}, '"late" is none of its values; write it as 13:05:00$'),
        ({"field": "noon", "lt": "12:00:00+01:00"}, "write it as 13:05:00$"),
        ({"field": "struct", "eq": "x"}, "as a column of its own"),
        ({"field": "zoned", "lt": "2024-01-05"}, "write it as 2024-01-31T00:00:00Z"),
        ({"field": "naive", "lt": "2024-01-05T00:00:00Z"}, "write it as 2024-01-31T00:00:00$"),
        ({"field": "tags", "gt": "a"}, "no order"),
        ({"field": "seen", "gt": "tomorrow"}, "none of its values"),
    ],
)
def test_what_cannot_be_compared_is_named(filter_: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        passing(filter_)


@pytest.mark.parametrize(
    "filter_",
    [
        {"field": "lang"},
        {"field": "lang", "like": "e%"},
        {"and": []},
        {"and": [{"field": "lang", "eq": "en"}], "or": []},
        {"field": "lang", "exists": "yes"},
        [],
        "lang=en",
    ],
)
def test_what_is_no_filter_is_refused(filter_: Any) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(filter_)


@pytest.mark.parametrize(
    ("filter_", "told"),
    [
        ({"field": "lang", "eq": ["en"]}, "takes one value; use in for several"),
        ({"field": "lang", "ne": {"a": 1}}, "takes one value: text, a number, true or false"),
        ({"field": "lang", "in": ["en", None]}, "takes one value: text"),
        ({"field": "lang", "eq": None}, 'use "exists": false'),
        ({"field": "lang", "in": None}, 'use "exists": false'),
        ({"field": "lang", "eq": "x" * 1_001}, "has more than 1000 characters"),
        ({"field": "lang", "eq": "\ud800"}, "has a lone surrogate"),
        ({"field": "year", "eq": float("nan")}, "is no finite number"),
        ({"term": {"lang": "en"}}, '"term" is no filter; write {"field": COLUMN, …} with eq, ne'),
        ({"lang": "en", "year": 2024}, '"lang", "year" is no filter'),
        ({}, "an empty object is no filter"),
    ],
)
def test_what_is_wrong_with_a_filter_is_one_line(filter_: Any, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(filter_)
    (error,) = caught.value.errors()
    assert told in error["msg"]


def test_size_is_bounded() -> None:
    one: Any = {"field": "lang", "eq": "en"}
    deep = one
    for _ in range(MAX_DEPTH - 1):
        deep = {"not": deep}
    assert check(ADAPTER.validate_python(deep))
    with pytest.raises(ValueError, match="nested"):
        check(ADAPTER.validate_python({"not": deep}))
    half = {"or": [one] * (MAX_CONDITIONS // 2 + 1)}
    with pytest.raises(ValueError, match="conditions"):
        check(ADAPTER.validate_python({"and": [half, half]}))


def test_a_column_is_tested_as_it_lies_and_not_put_together() -> None:
    class Scattered:
        """Arrow refuses to put together what is too long for a string array."""

        type = pa.string()
        chunks = (ROWS["lang"][:1], ROWS["lang"][1:])

    filter_ = ADAPTER.validate_python({"field": "lang", "eq": "en"})
    found = mask(filter_, lambda _: Scattered())
    assert found.to_pylist() == [True, False, False, True]
    empty = mask(filter_, lambda _: pa.chunked_array([], pa.string()))
    assert len(empty) == 0


def test_what_arrow_has_no_test_for_is_told_by_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise pa.ArrowNotImplementedError("Function 'is_in' has no kernel matching input types")

    monkeypatch.setattr("rayvec.indexing.filters.pc.is_in", none)
    with pytest.raises(UserError, match="lang is a column of string, and cannot be tested so"):
        passing({"field": "lang", "eq": "en"})


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(2**53 - 2, 2**53 + 2)), min_size=1),
    st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(2**53 - 2, 2**53 + 2).map(float)),
)
def test_fractions_and_whole_numbers_are_compared_as_python_does(values: list[int | None], value: float) -> None:
    column_ = pa.chunked_array([pa.array(values, pa.int64())])
    for name in ("gt", "gte", "lt", "lte", "eq"):
        found = mask(ADAPTER.validate_python({"field": "n", name: value}), lambda _: column_).to_pylist()
        assert found == [v is not None and _holds(name, v, value) for v in values]


def _holds(test: str, left: int, right: float) -> bool:
    """Python compares a whole number and a fraction exactly."""
    return {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right, "eq": left == right}[
        test
    ]


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1), st.integers(-3, 3), st.integers(-3, 3))
def test_filters_agree_with_python(values: list[int | None], low: int, other: int) -> None:
    filter_ = ADAPTER.validate_python(
        {"or": [{"field": "n", "gte": low, "ne": other}, {"not": {"field": "n", "in": [low, other]}}]}
    )
    expected = [
        (v is not None and v >= low and v != other) or not (v is not None and v in (low, other)) for v in values
    ]
    assert mask(filter_, lambda _: pa.chunked_array([pa.array(values, pa.int8())])).to_pylist() == expected
