"""The types of columns of JSON objects, told by samples of their values, and values as one of those types.

Knows plain values and Arrow types. Knows no record, no file format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import GenericAlias
from typing import Any

import pyarrow as pa

#: A type of values, such as `int`, or `list[int]` of lists; `list` of lists that are empty.
Kind = type | GenericAlias
#: The kinds of values that were seen in each column.
Kinds = dict[str, set[Kind]]


def kinds_of(sample: Iterable[Mapping[str, Any]], paths: Iterable[str] = ()) -> Kinds:
    """The columns of a sample of JSON objects, and those of the paths that are there."""
    kinds: Kinds = {}
    for record in sample:
        for name, value in record.items():
            kinds.setdefault(name, set()).add(_kind(value))
        for path in paths:
            value = value_at(record, path)
            if value is not None and path not in record:
                kinds.setdefault(path, set()).add(_kind(value))
    return kinds


def infer_types(kinds: Kinds) -> dict[str, pa.DataType]:
    """The types of columns. Columns of mixed or nested values become JSON text.

    >>> infer_types(kinds_of([{"a": 1, "b": {"c": 2}}, {"a": None}], ["b.c"]))
    {'a': DataType(int64), 'b': DataType(string), 'b.c': DataType(int64)}
    """
    return {name: _SIMPLE.get(_decisive(seen), pa.string()) for name, seen in kinds.items()}


def mixtures(kinds: Kinds) -> dict[str, str]:
    """Of columns whose values are of several types that are no one type: which types those are.

    >>> mixtures(kinds_of([{"a": 1, "b": 1, "c": {}}, {"a": "1", "b": 1.5, "c": None}]))
    {'a': 'int and str'}
    """
    decisive = {name: _decisive(seen) for name, seen in kinds.items()}
    return {
        name: " and ".join(sorted(kind.__name__ if type(kind) is type else str(kind) for kind in seen))
        for name, seen in decisive.items()
        if len(seen) > 1 and seen not in _SIMPLE
    }


def _decisive(seen: set[Kind]) -> frozenset[Kind]:
    """The kinds less those that fit others: null, and empty lists among lists."""
    kinds = frozenset(seen - {type(None)})
    others = kinds - {list}
    return others if others and all(isinstance(kind, GenericAlias) for kind in others) else kinds


_SIMPLE: dict[frozenset[Kind], pa.DataType] = {
    frozenset([bool]): pa.bool_(),
    frozenset([int]): pa.int64(),
    frozenset([float]): pa.float64(),
    frozenset([float, int]): pa.float64(),
    frozenset([list]): pa.list_(pa.string()),
    frozenset([list[str]]): pa.list_(pa.string()),
    frozenset([list[bool]]): pa.list_(pa.bool_()),
    frozenset([list[int]]): pa.list_(pa.int64()),
    frozenset([list[float]]): pa.list_(pa.float64()),
    frozenset([list[float], list[int]]): pa.list_(pa.float64()),
}

#: The kinds of lists by the types of their items.
_LISTS: dict[frozenset[type], Kind] = {
    frozenset(): list,
    frozenset([str]): list[str],
    frozenset([bool]): list[bool],
    frozenset([int]): list[int],
    frozenset([float]): list[float],
    frozenset([float, int]): list[float],
}


def _kind(value: Any) -> Kind:
    """The kind of a value; a list that holds objects, or what has no type in common, is as good as an object."""
    if isinstance(value, list):
        return _LISTS.get(frozenset(map(type, value)) - {type(None)}, dict)
    return type(value)


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """What stands under a name, or under a path of names; None where nothing does.

    >>> value_at({"meta": {"text": "a"}}, "meta.text"), value_at({"meta.text": "b"}, "meta.text"), value_at({}, "c")
    ('a', 'b', None)
    """
    if path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    inner = record.get(head) if dot else None
    return value_at(inner, rest) if isinstance(inner, Mapping) else None


#: Which plain values a payload column of a type takes as they are.
PLAIN: dict[pa.DataType, type] = {
    pa.bool_(): bool,
    pa.int64(): int,
    pa.float64(): float,
    pa.string(): str,
    pa.list_(pa.string()): list,
    pa.list_(pa.bool_()): list,
    pa.list_(pa.int64()): list,
    pa.list_(pa.float64()): list,
}


def fitted(value: Any, type_: pa.DataType, takes: type) -> Any:
    """A value as one of a column's type, where that changes nothing of it; else None. Text takes anything, as JSON."""
    try:
        if takes is str:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text.encode()  # a lone surrogate has no UTF-8 form
            return text
        kind = type(value)
        if kind is takes:
            if takes is list:
                return _fitted_list(value, type_.value_type)
            if takes in (bool, float) or (takes is int and -(2**63) <= value < 2**63):
                return value
        if bool in (kind, takes):
            return None
        return pa.scalar(value).cast(type_).as_py()
    except (pa.ArrowException, ArithmeticError, ValueError):
        return None


def _fitted_list(values: Sequence[Any], type_: pa.DataType) -> list[Any] | None:
    items = [None if item is None else fitted(item, type_, PLAIN[type_]) for item in values]
    return None if items.count(None) > values.count(None) else items
