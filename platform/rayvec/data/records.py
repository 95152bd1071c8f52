"""Records: what rows of any format must be to become documents. Which column is what; what is refused, and why.

Knows plain values and Arrow arrays. Knows no file format.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayvec.data.source_config import SourceConfig
from rayvec.data.units import Rejected, UnitData
from rayvec.errors import UserError
from rayvec.schema import ID, RESERVED, TEXT, TITLE

POSITION = "position"
#: Names looked for when the configuration names none; `_id` is BEIR's.
ID_NAMES = ("id", "_id")
TITLE_NAMES = ("title",)
TEXT_NAMES = ("text", "abstract", "content", "body")
MAX_ID_BYTES = 512
#: A text of only these is empty: white space, separators, controls, and invisible characters such as U+200B.
_VISIBLE = r"[^\s\p{Z}\p{Cc}\p{Cf}]"

_TITLE_ONLY = "it has a title; source.text_columns that name the title too would keep it"


@dataclass(frozen=True)
class Layout:
    """Which columns are id, title and text (joined by newlines), the payload's names and types, and which are `left`.

    A column is a name, or a path of names joined by dots into columns inside others. See SourceConfig for the rest.
    """

    id: str | None
    title: str | None
    text: tuple[str, ...]
    payload: tuple[tuple[str, pa.DataType], ...] = ()
    missing_id: Literal["quarantine", "make"] = "quarantine"
    make_ids: Literal["path", "content"] = "path"
    left: tuple[str, ...] = ()
    #: Whether every column was to be carried: one that begins where none has looked is told then.
    carries_all: bool = False

    @property
    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        named = [self.id, self.title, *self.text, *(name for name, _ in self.payload)]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def schema(self) -> pa.Schema:
        """The schema of the tables that reading gives."""
        fields = [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(TITLE, pa.string()),
            pa.field(TEXT, pa.string(), nullable=False),
            *(pa.field(name, type_) for name, type_ in self.payload),
            pa.field(POSITION, pa.int64(), nullable=False),
        ]
        return pa.schema(fields)


def content_id(title: str | None, text: str | None) -> str:
    """The id of a document by what it says; equal documents have equal ids, wherever they stand.

    >>> content_id(None, "a") == content_id("", "a") != content_id("a", "a")
    True
    """
    return hashlib.blake2b(f"{title or ''}\n{text or ''}".encode(), digest_size=16).hexdigest()


def named_columns(config: SourceConfig) -> list[str]:
    """The columns that a configuration names."""
    payload = () if isinstance(config.payload, str) else config.payload
    names = [config.id_column, config.title_column, *config.text_columns, *payload]
    return [name for name in names if name is not None]


def resolve_layout(where: str, columns: Mapping[str, pa.DataType], config: SourceConfig) -> Layout:
    """Find the columns by configured or usual name. Raises UserError that lists what is there.

    columns: those that are there, and of those inside others the ones that the configuration names.
    """
    id_column, title_column, payload = config.id_column, config.title_column, config.payload
    for key, names in (
        ("id_column", [id_column]),
        ("title_column", [title_column]),
        ("text_columns", config.text_columns),
    ):
        _require(where, columns, f"source.{key}", [name for name in names if name is not None])
    text = config.text_columns or _first(columns, TEXT_NAMES)
    if not text:
        raise UserError(
            f"{where} has no column {' or '.join(map(repr, TEXT_NAMES))}; it has {_list(columns)}: "
            "name the text with --set source.text_columns=[…]"
        )
    id_ = id_column or next(iter(_first(columns, ID_NAMES)), None)
    title = title_column or next((name for name in _first(columns, TITLE_NAMES) if name not in text), None)
    taken = {id_, title, *text}
    chosen = [name for name in columns if name not in taken] if isinstance(payload, str) else list(payload)
    _require(where, columns, "source.payload", chosen)
    reserved = sorted((RESERVED | {POSITION}) & set(chosen))
    if reserved:
        raise UserError(
            f"{where}: source.payload may not carry {_list(reserved)}, names that rayvec uses itself; "
            "list the other columns with --set source.payload=[…], or rename these"
        )
    carried = tuple((name, columns[name]) for name in dict.fromkeys(chosen))
    used = {name for path in [*taken, *chosen] if path is not None for name in (path, path.partition(".")[0])}
    left = tuple(name for name in columns if name not in used and "." not in name)
    return Layout(id_, title, text, carried, config.missing_id, config.make_ids, left, payload == "all")


def _first(columns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    there = set(columns)
    return next(((name,) for name in names if name in there), ())


def _require(where: str, columns: Mapping[str, pa.DataType], key: str, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"{where} has no column {_list(missing)} ({key}); it has {_list(columns)}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


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


class RefusedError(Exception):
    """This record cannot become a document."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


#: So many columns that the plan did not know are counted in a unit: records whose keys are data have any number.
_MAX_LATER = 100


class Builder:
    """Collects records given one by one as plain values, and gives them as a UnitData."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.file, self.base = "", 0
        self.rows: list[tuple[Any, ...]] = []
        self.offsets: list[int] = []
        self.rejected: list[Rejected] = []
        self.nulled: Counter[str] = Counter()
        self.later: Counter[str] = Counter()
        self._known = {name for path in layout.columns for name in (path, path.partition(".")[0])}
        self._payload = [(name, type_, _TAKES[type_]) for name, type_ in layout.payload]

    def begin(self, file: str, base: int) -> None:
        """What is added from here on is of this file (its name, for ids), and its positions count from `base`."""
        self.file, self.base = file, base

    def add(self, position: int, offset: int, record: Mapping[str, Any]) -> None:
        """Take a record, or refuse it with a reason."""
        try:
            row = self._row(position, record)
        except RefusedError as error:
            self.reject(position, offset, error.reason, detail=error.detail, id_=_safe_id(self.layout, record))
            return
        self.rows.append(row)
        self.offsets.append(offset)
        if self.layout.carries_all and not record.keys() <= self._known:
            self._note_later(record)

    def reject(self, position: int, offset: int, reason: str, *, detail: str = "", id_: str | None = None) -> None:
        """Note a record that is not taken."""
        self.rejected.append(Rejected(self.base + position, offset, reason, id_, None, detail))

    def finish(self) -> UnitData:
        """The records taken, less those without visible text, and all that were refused, by position."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.layout.schema)
        arrays = [pa.chunked_array([pa.array(c, f.type)]) for c, f in zip(columns, self.layout.schema, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=self.layout.schema)
        data = refuse_blank(table, self.offsets)
        there = {name: len(table) - table[name].null_count + self.nulled[name] for name, _ in self.layout.payload}
        rest = UnitData(data.table.slice(0, 0), self.rejected, self.nulled, Counter(there), self.later)
        return UnitData.joined([data, rest])

    def _note_later(self, record: Mapping[str, Any]) -> None:
        for name in record.keys() - self._known:
            if record[name] is not None and (name in self.later or len(self.later) < _MAX_LATER):
                self.later[name] += 1

    def _row(self, position: int, record: Mapping[str, Any]) -> tuple[Any, ...]:
        layout = self.layout
        text = _text([value_at(record, name) for name in layout.text])
        title = None if layout.title is None else _title(value_at(record, layout.title))
        given = None if layout.id is None else value_at(record, layout.id)
        if layout.id is None or (layout.missing_id == "make" and given in (None, "")):
            id_ = f"{self.file}:{position}" if layout.make_ids == "path" else content_id(title, text)
        else:
            id_ = _id(given)
        payload = [self._fit(name, value_at(record, name), type_, takes) for name, type_, takes in self._payload]
        return (id_, title, text, *payload, self.base + position)

    def _fit(self, name: str, value: Any, type_: pa.DataType, takes: type) -> Any:
        if value is None:
            return None
        found = _fitted(value, type_, takes)
        if found is None:
            self.nulled[name] += 1
        return found


def _text(values: Sequence[Any]) -> str:
    there = [_string(value, "text") for value in values if not _is_missing(value)]
    if not there:
        raise RefusedError("missing_text")
    return there[0] if len(there) == 1 else "\n".join(filter(None, there))


def _id(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # pandas makes whole numbers floats where some are missing
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RefusedError("bad_id", f"the id is {'empty' if value == '' else type(value).__name__}")
    text = check_unicode(str(value))
    if len(text.encode()) > MAX_ID_BYTES:
        raise RefusedError("bad_id", f"the id has more than {MAX_ID_BYTES} bytes")
    return text


def _safe_id(layout: Layout, record: Mapping[str, Any]) -> str | None:
    """The id to put in the quarantine line, if there is a usable one."""
    try:
        return None if layout.id is None else _id(value_at(record, layout.id))
    except RefusedError:
        return None


def _title(value: Any) -> str | None:
    return None if _is_missing(value) else _string(value, "title") or None


def _is_missing(value: Any) -> bool:
    """Whether nothing is there; pandas writes NaN for it."""
    return value is None or value != value


def _string(value: Any, what: str) -> str:
    """A text or a title: a string, or a number as it is written (of a year, or the name of a film)."""
    if isinstance(value, str):
        return check_unicode(value)
    if isinstance(value, int | float):
        return str(value)
    raise RefusedError("bad_value", f"the {what} is a {type(value).__name__}, not a string")


#: Which plain values a payload column of a type takes as they are.
_TAKES: dict[pa.DataType, type] = {
    pa.bool_(): bool,
    pa.int64(): int,
    pa.float64(): float,
    pa.string(): str,
    pa.list_(pa.string()): list,
    pa.list_(pa.bool_()): list,
    pa.list_(pa.int64()): list,
    pa.list_(pa.float64()): list,
}


def _fitted(value: Any, type_: pa.DataType, takes: type) -> Any:
    """A value as one of a column's type, where that changes nothing of it; else None. Text takes anything, as JSON."""
    try:
        if takes is str:
            return check_unicode(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        kind = type(value)
        if kind is takes:
            if takes is list:
                return _fitted_list(value, type_.value_type)
            if takes in (bool, float) or (takes is int and -(2**63) <= value < 2**63):
                return value
        if bool in (kind, takes):
            return None
        return pa.scalar(value).cast(type_).as_py()
    except (RefusedError, pa.ArrowException, ArithmeticError, ValueError):
        return None


def _fitted_list(values: Sequence[Any], type_: pa.DataType) -> list[Any] | None:
    items = [None if item is None else _fitted(item, type_, _TAKES[type_]) for item in values]
    return None if items.count(None) > values.count(None) else items


def check_unicode(text: str) -> str:
    """Refuse what has no UTF-8 form: lone surrogates, from an escape or from undecodable bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(
            "invalid_utf8", "a lone surrogate, or bytes that are not UTF-8; see source.encoding"
        ) from None
    return text


def is_visible(text: str) -> bool:
    """Whether a text shows anything at all.

    >>> is_visible("a"), is_visible(" \u200b")
    (True, False)
    """
    return bool(pc.match_substring_regex(pa.scalar(text), _VISIBLE).as_py())


def refuse_blank(table: pa.Table, offsets: Sequence[int] | None = None) -> UnitData:
    """Move the rows whose text shows nothing out of the table."""
    visible = pc.match_substring_regex(table[TEXT], _VISIBLE)
    blank = np.flatnonzero(~visible.to_numpy().astype(bool)).tolist()
    if not blank:
        return UnitData(table)
    rows = table.take(pa.array(blank)).select([ID, TITLE, TEXT, POSITION]).to_pylist()
    rejected = [
        Rejected(
            row[POSITION],
            None if offsets is None else offsets[index],
            "empty_text",
            row[ID],
            hashlib.sha256(row[TEXT].encode()).hexdigest(),
            _TITLE_ONLY if row[TITLE] else "",
        )
        for index, row in zip(blank, rows, strict=True)
    ]
    return UnitData(table.filter(visible), rejected)
