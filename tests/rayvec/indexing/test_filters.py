"""Filters: which documents pass, and what is refused."""

from __future__ import annotations

import datetime
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
        ({"field": "score", "lte": 1}, [0, 1, 2, 3]),
        ({"field": "open", "eq": True}, [0, 3]),
        ({"field": "tags", "eq": "b"}, [0, 2]),
        ({"field": "tags", "in": ["a"]}, [0]),
        ({"field": "tags", "ne": "b"}, [1]),
        ({"field": "seen", "gte": "2025-01-03"}, [2, 3]),
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
        ({"field": "year", "eq": True}, "year is a column of int32"),
        ({"field": "year", "gt": 2**40}, "none of its values"),
        ({"field": "lang", "eq": None}, "cannot be compared with None"),
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
        {"field": "lang", "eq": ["en"]},
        {"field": "year", "eq": float("nan")},
        [],
        "lang=en",
    ],
)
def test_what_is_no_filter_is_refused(filter_: Any) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(filter_)


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


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1), st.integers(-3, 3), st.integers(-3, 3))
def test_filters_agree_with_python(values: list[int | None], low: int, other: int) -> None:
    filter_ = ADAPTER.validate_python(
        {"or": [{"field": "n", "gte": low, "ne": other}, {"not": {"field": "n", "in": [low, other]}}]}
    )
    expected = [
        (v is not None and v >= low and v != other) or not (v is not None and v in (low, other)) for v in values
    ]
    assert mask(filter_, lambda _: pa.chunked_array([pa.array(values, pa.int8())])).to_pylist() == expected
