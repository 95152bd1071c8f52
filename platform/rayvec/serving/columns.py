"""Plain values of a request as a column of the index's documents: the same values that its answers carry.

Numbers are numbers, times are ISO 8601 text, bytes are base64, lists and objects are lists and structs. Nothing is
guessed: text is no number, a number is no text. Knows Arrow types. Knows no index, no route.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from rayvec.indexing.filters import time_scalar, written_as


class MisfitError(ValueError):
    """A value that its column cannot hold: the row, and why."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The values as an Arrow array of a type; None is null.

    Raises MisfitError for the first that does not fit.

    >>> column([1, None], pa.int32()).to_pylist()
    [1, None]
    """
    found = []
    for row, value in enumerate(values):
        try:
            found.append(pa.scalar(_converted(value, kind), kind))
        except (pa.ArrowException, ArithmeticError, UnicodeEncodeError, binascii.Error):
            raise MisfitError(row, f"{_shown(value)} is none of its values") from None
        except ValueError as error:
            raise MisfitError(row, str(error)) from None
    return pa.array([scalar.as_py() for scalar in found], kind)


def _converted(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    types = pa.types
    if types.is_dictionary(kind):
        return _converted(value, kind.value_type)
    if _is_list(kind):
        return [_converted(item, kind.value_type) for item in _checked(value, list)]
    if types.is_struct(kind):
        return _struct(_checked(value, dict), kind)
    if types.is_boolean(kind):
        return _checked(value, bool)
    if types.is_integer(kind):
        return _checked(value, int)
    if types.is_floating(kind):
        return float(_checked(value, float, int))
    if types.is_decimal(kind):
        return Decimal(str(_checked(value, int, float, str)))
    if types.is_string(kind) or types.is_large_string(kind):
        return _checked(value, str)
    if types.is_temporal(kind) and not types.is_duration(kind):
        return _time(_checked(value, str), kind)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return base64.b64decode(_checked(value, str), validate=True)
    raise ValueError("has values that cannot be written over HTTP; use python -m jobs.embed and jobs.index")


def _time(text: str, kind: pa.DataType) -> Any:
    try:
        return time_scalar(text, kind).as_py()
    except ValueError:  # Arrow's are ValueErrors too
        raise ValueError(f"{_shown(text)} is none of its values{written_as(kind)}") from None


def _struct(value: dict[str, Any], kind: pa.StructType) -> dict[str, Any]:
    known = {field.name: field.type for field in kind}
    unknown = sorted(value.keys() - known.keys())
    if unknown:
        raise ValueError(f"has no field {_shown(unknown[0])}; it has {', '.join(known)}")
    return {name: _converted(value.get(name), type_) for name, type_ in known.items()}


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"cannot hold {_shown(value)}")
    return value


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 64 else f"{text[:64]}…"
