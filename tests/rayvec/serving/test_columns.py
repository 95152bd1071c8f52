"""Values of requests as columns of the index."""

from __future__ import annotations

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
