"""Filters over the columns of documents: what a client may ask of a hit beside its rank.

    {"field": "year", "gte": 2020, "lt": 2025}        a condition; several tests of one field must all hold
    {"field": "lang", "in": ["en", "de"]}             on a column of lists: any of its values
    {"field": "lang", "exists": false}                without a value: null, NaN, or a list without one
    {"and": [...]}, {"or": [...]}, {"not": {...}}     of conditions, and of one another

A document whose column is null passes no test of it but `"exists": false`, and so passes `not` of it. `ne` of a list
holds where none of its values is that one, and so of an empty list. Bounded in size: a filter comes from outside.
Knows Arrow columns. Knows no index, no request, no route.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import time
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation
from functools import reduce
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from rayvec.errors import UserError

MAX_CONDITIONS = 32
MAX_VALUES = 1_000
MAX_DEPTH = 8
MAX_CHARACTERS = 1_000
#: Of a value, as many characters are repeated in an error.
MAX_SHOWN = 64
#: Holds every float to its last digit.
_WIDE = Context(prec=800)

TESTS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "exists")
_FORMS = f'{{"field": COLUMN, …}} with {", ".join(TESTS)}, or {{"and": […]}}, {{"or": […]}}, {{"not": {{…}}}}'


def _one_value(value: Any) -> Any:
    """Checked before the union of types, of which each would tell an error of its own. Raises ValueError."""
    if isinstance(value, list):
        raise ValueError("takes one value; use in for several")
    if not isinstance(value, bool | int | float | str):
        raise ValueError("takes one value: text, a number, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("is no finite number")
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise ValueError(f"has more than {MAX_CHARACTERS} characters")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("has a lone surrogate, which is not text")
    return value


Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Value = Annotated[bool | int | float | Text, BeforeValidator(_one_value)]
#: What gives a column by its name: one value a document. Raises UserError for a name that is none.
Columns = Callable[[str], pa.ChunkedArray]


class _Node(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Condition(_Node):
    """Tests of one column; all that are given must hold."""

    field: str = Field(min_length=1, max_length=256)
    eq: Value | None = None
    ne: Value | None = None
    gt: Value | None = None
    gte: Value | None = None
    lt: Value | None = None
    lte: Value | None = None
    one_of: list[Value] | None = Field(None, alias="in", min_length=1, max_length=MAX_VALUES)
    exists: bool | None = Field(None, description="whether the column has a value; an empty list has none")

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_column(cls, value: Any) -> Any:
        if isinstance(value, dict) and "field" not in value:
            keys = ", ".join(_shown(key) for key in value)
            raise ValueError(f"{f'{keys[:MAX_SHOWN]} is' if keys else 'an empty object is'} no filter; write {_FORMS}")
        return value

    @field_validator(*(name for name in TESTS if name != "in"), "one_of", mode="before")
    @classmethod
    def _is_given(cls, value: Any) -> Any:
        if value is None:
            raise ValueError('null is no value to compare with; for documents without a value use "exists": false')
        return value

    @model_validator(mode="after")
    def _tests_something(self) -> Condition:
        if not self.model_fields_set - {"field"}:
            raise ValueError(f"tests nothing of {self.field!r}; give one of {', '.join(TESTS)}")
        return self


class All(_Node):
    """Every one of them holds."""

    all_of: list[Filter] = Field(alias="and", min_length=1, max_length=MAX_CONDITIONS)


class Either(_Node):
    """At least one of them holds."""

    any_of: list[Filter] = Field(alias="or", min_length=1, max_length=MAX_CONDITIONS)


class Not(_Node):
    """It does not hold."""

    negated: Filter = Field(alias="not")


_TAGS = {"and": "<and>", "or": "<or>", "not": "<not>"}
_TAG_OF_CLASS = {"All": "<and>", "Either": "<or>", "Not": "<not>"}


def _shape(value: Any) -> str:
    """Which form a value means, told by its key, so that only one set of errors is shown."""
    if isinstance(value, dict):
        return next((tag for key, tag in _TAGS.items() if key in value), "<condition>")
    return _TAG_OF_CLASS.get(type(value).__name__, "<condition>")


Filter = Annotated[
    Annotated[Condition, Tag("<condition>")]
    | Annotated[All, Tag("<and>")]
    | Annotated[Either, Tag("<or>")]
    | Annotated[Not, Tag("<not>")],
    Discriminator(_shape),
]
for _model in (All, Either, Not):
    _model.model_rebuild()


def check(filter_: Filter) -> Filter:
    """The filter, unless it is larger than allowed. Raises ValueError."""
    conditions, depth = _size(filter_)
    if conditions > MAX_CONDITIONS:
        raise ValueError(f"has {conditions} conditions, and {MAX_CONDITIONS} are allowed")
    if depth > MAX_DEPTH:
        raise ValueError(f"is nested {depth} deep, and {MAX_DEPTH} is allowed")
    return filter_


def _size(filter_: Filter) -> tuple[int, int]:
    """Conditions, and how deep they are nested."""
    inner = [_size(child) for child in _children(filter_)]
    if not inner:
        return 1, 1
    return sum(count for count, _ in inner), 1 + max(depth for _, depth in inner)


def _children(filter_: Filter) -> Sequence[Filter]:
    if isinstance(filter_, All):
        return filter_.all_of
    if isinstance(filter_, Either):
        return filter_.any_of
    return [filter_.negated] if isinstance(filter_, Not) else []


def mask(filter_: Filter, columns: Columns) -> pa.BooleanArray:
    """Which documents pass: true or false for each.

    Raises UserError for a column that is not there, and for a value that cannot be compared with its column.
    """
    if isinstance(filter_, Condition):
        return _condition(filter_, columns(filter_.field))
    if isinstance(filter_, Not):
        return pc.invert(mask(filter_.negated, columns))
    join = pc.and_ if isinstance(filter_, All) else pc.or_
    return reduce(join, [mask(child, columns) for child in _children(filter_)])


def _condition(condition: Condition, column: pa.ChunkedArray) -> pa.BooleanArray:
    """Chunk by chunk: put together, texts of over 2 GiB do not fit a column of strings."""
    try:
        found = [reduce(pc.and_, [pc.fill_null(t, False) for t in _tests(condition, one)]) for one in column.chunks]
    except pa.ArrowException:  # a type that Arrow has no such test for
        message = f"filter: {condition.field} is a column of {column.type}, and cannot be tested so; use another column"
        raise UserError(message) from None
    return pa.concat_arrays(found) if found else pa.array([], pa.bool_())


@dataclass(frozen=True)
class _Order:
    """A comparison; how a value between two that a column can hold is rounded; what holds where it lies above all."""

    compare: Callable[[pa.Array, pa.Scalar], pa.Array]
    rounding: str
    is_below: bool


_ORDERS: dict[Literal["gt", "gte", "lt", "lte"], _Order] = {
    "gt": _Order(pc.greater, ROUND_FLOOR, is_below=False),
    "gte": _Order(pc.greater_equal, ROUND_CEILING, is_below=False),
    "lt": _Order(pc.less, ROUND_CEILING, is_below=True),
    "lte": _Order(pc.less_equal, ROUND_FLOOR, is_below=True),
}


def _tests(condition: Condition, values: pa.Array) -> Iterator[pa.Array]:
    name, given = condition.field, condition.model_fields_set
    if "exists" in given:
        yield _has_value(values) if condition.exists else pc.invert(_has_value(values))
    if "eq" in given:
        yield _is_one_of(name, values, [condition.eq])
    if "one_of" in given:
        yield _is_one_of(name, values, condition.one_of or [])
    if "ne" in given:
        yield pc.and_(pc.is_valid(values), pc.invert(_is_one_of(name, values, [condition.ne])))
    for test, order in _ORDERS.items():
        if test not in given:
            continue
        kind = values.type
        if _is_list(kind) or pa.types.is_boolean(kind):
            raise UserError(f"filter: {name} is a column of {kind}, which has no order; use eq, ne or in")
        yield _ordered(name, values, getattr(condition, test), order)


def _ordered(name: str, values: pa.Array, value: Value | None, order: _Order) -> pa.Array:
    number = _number(name, value, values.type)
    if number is None:
        return order.compare(values, _scalar(name, value, values.type))
    held = _held(_at_scale(number, values.type, order.rounding), values.type)
    if held is None:  # above or below all that the column can hold
        return pc.and_(pc.is_valid(values), (number > 0) == order.is_below)
    return order.compare(values, held)


def _number(name: str, value: Value | None, kind: pa.DataType) -> Decimal | None:
    """The number that is meant where a column holds whole or decimal ones, which floats would blur; else None.

    A decimal is also written as text, as answers have it.
    """
    is_decimal = pa.types.is_decimal(kind)
    if isinstance(value, bool) or not (is_decimal or pa.types.is_integer(kind)):
        return None
    if not isinstance(value, int | float) and not (is_decimal and isinstance(value, str)):
        return None
    try:
        # Among decimals a float is what is written; among whole numbers what it holds.
        number = Decimal(str(value) if is_decimal else value)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise UserError(f"filter: {name} is a column of {kind}, and {_shown(value)} is none of its values")
    return number


def _at_scale(number: Decimal, kind: pa.DataType, rounding: str) -> Decimal:
    """The next number with as many digits behind the point as the column has."""
    scale = kind.scale if pa.types.is_decimal(kind) else 0
    return number.quantize(Decimal(1).scaleb(-scale), rounding=rounding, context=_WIDE)


def _held(number: Decimal, kind: pa.DataType) -> pa.Scalar | None:
    """A number as a column has it; None where it cannot hold it."""
    try:
        return pa.scalar(number if pa.types.is_decimal(kind) else int(number), kind)
    except (pa.ArrowException, OverflowError):
        return None


def _is_one_of(name: str, values: pa.Array, wanted: Sequence[Value | None]) -> pa.Array:
    """Of a column of lists: whether any of a document's values is one of those wanted."""
    flat = pc.list_flatten(values) if _is_list(values.type) else values
    scalars = [_equal(name, value, flat.type) for value in wanted]
    found = pc.is_in(flat, pa.array([scalar for scalar in scalars if scalar is not None], flat.type))
    return _any_of_row(values, found) if _is_list(values.type) else found


def _has_value(values: pa.Array) -> pa.Array:
    """Where there is one: NaN, which answers show as null, is none. Of a column of lists: where one of a list is."""
    flat = pc.list_flatten(values) if _is_list(values.type) else values
    found = pc.invert(pc.is_null(flat, nan_is_null=True))
    return _any_of_row(values, found) if _is_list(values.type) else found


def _any_of_row(values: pa.Array, found: pa.Array) -> pa.Array:
    """Of lists: for which of them any of their values was found."""
    rows = pc.unique(pc.filter(pc.list_parent_indices(values), found)).cast(pa.int64())
    return pc.is_in(pa.array(np.arange(len(values))), rows)


def _equal(name: str, value: Value | None, kind: pa.DataType) -> pa.Scalar | None:
    """What a value is equal to in a column; None for a number that it cannot hold, which is equal to nothing."""
    number = _number(name, value, kind)
    if number is None:
        return _scalar(name, value, kind)
    near = _at_scale(number, kind, ROUND_FLOOR)
    return _held(near, kind) if near == number else None


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _scalar(name: str, value: Value | None, kind: pa.DataType) -> pa.Scalar:
    """A value of a request in the column's own type: text is no number, a number is no truth. See also _number."""
    fits = {
        str: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_temporal(kind),
        bool: pa.types.is_boolean(kind),
        int: pa.types.is_integer(kind) or pa.types.is_floating(kind),
        float: pa.types.is_floating(kind),
    }
    if not fits.get(type(value), False):
        cure = "; embed what is inside it as a column of its own (source.payload)" if pa.types.is_nested(kind) else ""
        raise UserError(f"filter: {name} is a column of {kind}, and cannot be compared with {_shown(value)}{cure}")
    try:
        return time_scalar(value, kind) if isinstance(value, str) else pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError, ValueError):
        message = f"filter: {name} is a column of {kind}, and {_shown(value)} is none of its values{written_as(kind)}"
        raise UserError(message) from None


def is_filterable(kind: pa.DataType) -> bool:
    """Whether conditions but `exists` can test a column of this type.

    >>> is_filterable(pa.list_(pa.string())), is_filterable(pa.struct([pa.field("a", pa.int8())]))
    (True, False)
    """
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return is_filterable(kind.value_type)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or (types.is_temporal(kind) and not types.is_duration(kind))
    )


def time_scalar(value: str, kind: pa.DataType) -> pa.Scalar:
    """Text as a value of a column of dates, times of day or points in time, as ISO 8601 has it, or of text.

    Raises ValueError, of which Arrow's errors are some.

    >>> time_scalar("13:05", pa.time32("s")).as_py()
    datetime.time(13, 5)
    """
    if not pa.types.is_time(kind):
        return pa.scalar(value).cast(kind)
    parsed = time.fromisoformat(value)  # Arrow casts no text to times of day
    scalar = pa.scalar(parsed, kind)
    if scalar.as_py() != parsed:  # it has a zone, or parts of a second that the column does not keep
        raise ValueError(value)
    return scalar


def written_as(kind: pa.DataType) -> str:
    """The end of a message: a value of a column of times, as it is to be written; of other columns nothing."""
    if pa.types.is_date(kind):
        return "; write it as 2024-01-31"
    if pa.types.is_time(kind):
        return "; write it as 13:05:00"
    if not pa.types.is_timestamp(kind):
        return ""
    return f"; write it as {'2024-01-31T00:00:00Z' if kind.tz else '2024-01-31T00:00:00'}"


def _shown(value: Any) -> str:
    """As JSON has it, since a filter comes as JSON."""
    text = json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
