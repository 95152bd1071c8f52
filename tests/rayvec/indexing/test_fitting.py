"""Values of new documents as those of an index's columns: all that stay the same, and none that would not."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
import pytest

from rayvec.indexing.fitting import first_misfit, fit, shown

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = datetime(2026, 1, 2)


@pytest.mark.parametrize(
    ("column", "type_", "values"),
    [
        (pa.array([3, None]), pa.float64(), [3.0, None]),
        (pa.array([3.0, None]), pa.int32(), [3, None]),
        (pa.array([0.5, float("-inf")]), pa.float32(), [0.5, float("-inf")]),
        (pa.nulls(2, pa.string()), pa.list_(pa.int32()), [None, None]),
        (pa.array([3, None]), pa.string(), ["3", None]),
        (pa.array([{"a": 1}]), pa.string(), ['{"a": 1}']),
        (pa.array(["7"]), pa.int64(), [7]),
        (pa.array(["2026-01-02T03:04:05Z", None]), pa.timestamp("us", "UTC"), [MOMENT, None]),
        (pa.array(["2026-01-02T05:04:05+02:00"]), pa.timestamp("us", "UTC"), [MOMENT]),
        (pa.array(["2026-01-02T03:04:05"]), pa.timestamp("s"), [MOMENT.replace(tzinfo=None)]),
        (pa.array(["2026-01-02"]), pa.date32(), [date(2026, 1, 2)]),
        (pa.array(["13:05", None, "13:05:00.5"]), pa.time64("us"), [time(13, 5), None, time(13, 5, 0, 500_000)]),
        (pa.array([DAY], pa.timestamp("ns")), pa.timestamp("us"), [DAY]),
        (pa.array([DAY], pa.timestamp("ms")), pa.date32(), [date(2026, 1, 2)]),
        (pa.array([[1], None]), pa.list_(pa.float64()), [[1.0], None]),
        (pa.array([{"a": 1}]), pa.struct({"a": pa.int64(), "b": pa.string()}), [{"a": 1, "b": None}]),
    ],
)
def test_what_stays_the_same_is_taken(column: pa.Array, type_: pa.DataType, values: list[Any]) -> None:
    assert first_misfit(column, type_) is None
    schema = pa.schema({"column": type_, "other": pa.int8()})
    found = fit(pa.RecordBatch.from_arrays([column], ["column"]), schema)
    assert found.schema == schema
    assert found.to_pydict() == {"column": values, "other": [None] * len(values)}


@pytest.mark.parametrize(
    ("column", "type_", "value"),
    [
        (pa.array([1.0, None, 3.5, 4.5]), pa.int64(), "3.5"),
        (pa.array([float("nan")]), pa.int64(), "nan"),
        (pa.array([0.5, 0.1]), pa.float32(), "0.1"),
        (pa.array([1, 2**53 + 1]), pa.float64(), "9007199254740993"),
        (pa.array([1, 300]), pa.uint8(), "300"),
        (pa.array(["7", "007"]), pa.int64(), "'007'"),
        (pa.array(["x" * 99]), pa.int64(), f"'{'x' * 64}…'"),
        (pa.array([b"\xff"]), pa.string(), r"b'\xff'"),
        (pa.array([10**9, 1], pa.timestamp("ns")), pa.timestamp("us"), "1970-01-01 00:00:00.000000001"),
        (pa.array([1]), pa.timestamp("us"), "1"),
        (pa.array([0], pa.timestamp("us", "UTC")), pa.timestamp("us"), "1970-01-01 00:00:00.000000Z"),
        (pa.array(["2026-01-02T03:04:05"]), pa.timestamp("us", "UTC"), "'2026-01-02T03:04:05'"),
        (pa.array(["2026-01-02T03:04:05Z"]), pa.timestamp("us"), "'2026-01-02T03:04:05Z'"),
        (pa.array(["2026-01-02T03:04:05.5"]), pa.timestamp("s"), "'2026-01-02T03:04:05.5'"),
        (pa.array(["2026-01-02", "02/01/2026"]), pa.date32(), "'02/01/2026'"),
        (pa.array(["10:00", "10 o'clock"]), pa.time32("s"), '"10 o\'clock"'),
        (pa.array(["10:00:00.5"]), pa.time32("s"), "'10:00:00.5'"),
        (pa.array([[1.0], [1.5]]), pa.list_(pa.int64()), "[1.5]"),
        (pa.array([{"a": 1, "b": 2}]), pa.struct({"a": pa.int64()}), "[('a', 1), ('b', 2)]"),
    ],
)
def test_the_first_value_that_would_be_another_is_found(column: pa.Array, type_: pa.DataType, value: str) -> None:
    found = first_misfit(column, type_)
    assert found is not None and shown(found) == value


def test_nan_stays_nan() -> None:
    assert first_misfit(pa.array([float("nan")]), pa.float32()) is None
    assert first_misfit(pa.array([[float("nan")]]), pa.list_(pa.float32())) is None
