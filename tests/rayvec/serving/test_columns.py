"""Values of requests as columns of the index."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from rayvec.serving.columns import MisfitError, column

PRICE = pa.decimal128(4, 2)


def test_a_decimal_may_be_written_as_answers_have_it_or_as_a_number() -> None:
    assert column(["9.99", 10, 9.5, None], PRICE).to_pylist() == [*map(Decimal, ("9.99", "10.00", "9.50")), None]


@pytest.mark.parametrize("value", ["9.999", 1000, "NaN", "cheap", True, [1]])
def test_what_a_decimal_column_cannot_hold_is_refused_by_its_row(value: Any) -> None:
    with pytest.raises(MisfitError, match=r"none of its values|cannot hold") as raised:
        column(["1.00", value], PRICE)
    assert raised.value.row == 1


@pytest.mark.parametrize(
    ("kind", "value", "held"),
    [
        (pa.date32(), "2024-01-31", date(2024, 1, 31)),
        (pa.time32("s"), "13:05:07", time(13, 5, 7)),
        (pa.time64("us"), "13:05:07.250000", time(13, 5, 7, 250000)),
        (pa.timestamp("us"), "2024-01-31T13:05:07", datetime(2024, 1, 31, 13, 5, 7)),
    ],
)
def test_times_are_written_as_answers_have_them(kind: pa.DataType, value: str, held: Any) -> None:
    assert column([value, None], kind).to_pylist() == [held, None]
    assert column([[value]], pa.list_(kind)).to_pylist() == [[held]]


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (pa.date32(), "31/01/2024", "'31/01/2024' is none of its values; write it as 2024-01-31$"),
        (pa.time64("us"), "noon", "write it as 13:05:00$"),
        (pa.time64("us"), "13:05:00+01:00", "write it as 13:05:00$"),
        (pa.time32("s"), "13:05:00.5", "write it as 13:05:00$"),
        (pa.timestamp("us", "UTC"), "2024-01-31T13:05:07", "write it as 2024-01-31T00:00:00Z$"),
        (pa.date32(), 20240131, "cannot hold 20240131$"),
    ],
)
def test_a_time_that_is_none_is_refused_with_how_to_write_it(kind: pa.DataType, value: Any, told: str) -> None:
    with pytest.raises(MisfitError, match=told):
        column([value], kind)
