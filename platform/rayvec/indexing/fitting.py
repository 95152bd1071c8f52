"""Columns of new documents as those of an index: which values the index's types hold, and the values as such.

Knows Arrow columns. Knows no parts, no index, no Ray.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rayvec.data.readers.columns import fitted
from rayvec.indexing.filters import time_scalar


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of the schema, each of its type; null where it has none.

    Where types differ, values were looked through before: `first_misfit` found none.
    """
    there = set(batch.schema.names)
    columns = [
        _fit(batch.column(field.name), field.type) if field.name in there else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _fit(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if column.type == type_:
        return column
    values = _as(column, type_)
    assert values.null_count == column.null_count, (column.type, type_)
    return values.combine_chunks()


def first_misfit(column: pa.Array, type_: pa.DataType) -> pa.Scalar | None:
    """The first value that would not be the same one in a column of that type; None where all are, and nulls always.

    A text column holds everything, as in a build over files whose types differ. A column of times holds text that is
    one by ISO 8601, as JSON has them. Elsewhere a value is the same if it comes back from that type as it was. Nothing
    is guessed: a number is no time, and a time without a zone none with.

    >>> first_misfit(pa.array([3, None]), pa.float64()) is None
    True
    >>> first_misfit(pa.array([3.0, 3.5]), pa.int64())
    <pyarrow.DoubleScalar: 3.5>
    """
    values = column.drop_null()
    if column.type == type_ or not len(values):
        return None
    if _differ_in_kind(column.type, type_):
        return values[0]
    there = _as(values, type_)
    if _is_text(type_) or (_is_text(column.type) and pa.types.is_temporal(type_)):
        same = there.is_valid().combine_chunks()
    else:
        same = _equal(values, _as(there.combine_chunks(), column.type).combine_chunks())
    place = pc.index(same, False).as_py()
    return None if place < 0 else values[place]


def _as(column: pa.Array, type_: pa.DataType) -> pa.ChunkedArray:
    """The column as one of a type; null where a value does not fit it."""
    if _is_text(column.type) and pa.types.is_time(type_):  # Arrow casts no text to times of day
        return pa.chunked_array([pa.array([_time(text, type_) for text in column.to_pylist()], type_)])
    return fitted(pa.chunked_array([column]), type_)[0]


def _time(text: str | None, type_: pa.DataType) -> pa.Scalar | None:
    try:
        return None if text is None else time_scalar(text, type_)
    except ValueError:
        return None


def _differ_in_kind(a: pa.DataType, b: pa.DataType) -> bool:
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b):
        return (a.tz is None) != (b.tz is None)
    return bool((_is_number(a) and pa.types.is_temporal(b)) or (pa.types.is_temporal(a) and _is_number(b)))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _equal(values: pa.Array, others: pa.Array) -> pa.Array:
    """Which of them are the same, NaN and NaN too. No value is null, others may be."""
    try:
        equal = pc.equal(values, others).fill_null(False)
    except pa.ArrowNotImplementedError:  # lists and structs
        pairs = zip(values.to_pylist(), others.to_pylist(), strict=True)
        return pa.array([repr(value) == repr(other) for value, other in pairs], pa.bool_())
    if not pa.types.is_floating(values.type):
        return equal
    return pc.or_(equal, pc.and_(pc.is_nan(values), pc.is_nan(others).fill_null(False)))


def shown(value: pa.Scalar) -> str:
    """A value for a message, not longer than 64 characters."""
    try:
        text = str(value.cast(pa.string()).as_py())
    except pa.ArrowException:
        text = str(value)
    text = " ".join(text.split())
    text = text if len(text) <= 64 else f"{text[:64]}…"
    return repr(text) if _is_text(value.type) else text
