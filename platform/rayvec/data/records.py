"""Records: what rows of any format must be to become documents. Which column is what; what is refused, and why.

Knows plain values and Arrow arrays. Knows no file format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    """Which columns are id, title and text (joined by newlines), and the payload's names and types."""

    id: str | None
    title: str | None
    text: tuple[str, ...]
    payload: tuple[tuple[str, pa.DataType], ...] = ()

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


def resolve_layout(
    where: str,
    columns: Mapping[str, pa.DataType],
    *,
    id_column: str | None,
    title_column: str | None,
    text_columns: Sequence[str],
    payload: Sequence[str] | str,
) -> Layout:
    """Find the columns by configured or usual name. Raises UserError that lists what is there."""
    for key, names in (("id_column", [id_column]), ("title_column", [title_column]), ("text_columns", text_columns)):
        _require(where, columns, f"source.{key}", [name for name in names if name is not None])
    text = tuple(text_columns) or _first(columns, TEXT_NAMES)
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
    return Layout(id_, title, text, tuple((name, columns[name]) for name in dict.fromkeys(chosen)))


def _first(columns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    there = set(columns)
    return next(((name,) for name in names if name in there), ())


def _require(where: str, columns: Mapping[str, pa.DataType], key: str, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"{where} has no column {_list(missing)} ({key}); it has {_list(columns)}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def infer_types(sample: Sequence[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The columns of a sample of JSON objects. Columns of mixed or nested values become JSON text.

    >>> infer_types([{"a": 1, "b": {"c": 2}}, {"a": None}])
    {'a': DataType(int64), 'b': DataType(string)}
    """
    types: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for record in sample for name in record):
        values = [record[name] for record in sample if record.get(name) is not None]
        types[name] = _common_type(values)
    return types


_SIMPLE = {(bool,): pa.bool_(), (int,): pa.int64(), (float,): pa.float64(), (float, int): pa.float64()}


def _common_type(values: Sequence[Any]) -> pa.DataType:
    kinds = tuple(sorted({type(value) for value in values}, key=lambda kind: kind.__name__))
    if kinds == (list,) and all(isinstance(item, str) for value in values for item in value):
        return pa.list_(pa.string())
    return _SIMPLE.get(kinds, pa.string())


class RefusedError(Exception):
    """This record cannot become a document."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Builder:
    """Collects records given one by one as plain values, and gives them as a UnitData."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name
        self.rows: list[tuple[Any, ...]] = []
        self.offsets: list[int] = []
        self.rejected: list[Rejected] = []

    def add(self, position: int, offset: int, record: Mapping[str, Any]) -> None:
        """Take a record, or refuse it with a reason."""
        try:
            row = self._row(position, record)
        except RefusedError as error:
            self.reject(position, offset, error.reason, detail=error.detail, id_=_safe_id(self.layout, record))
            return
        self.rows.append(row)
        self.offsets.append(offset)

    def reject(self, position: int, offset: int, reason: str, *, detail: str = "", id_: str | None = None) -> None:
        """Note a record that is not taken."""
        self.rejected.append(Rejected(position, offset, reason, id_, None, detail))

    def finish(self) -> UnitData:
        """The records taken, less those without visible text, and all that were refused, by position."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.layout.schema)
        arrays = [pa.chunked_array([pa.array(c, f.type)]) for c, f in zip(columns, self.layout.schema, strict=True)]
        data = refuse_blank(pa.Table.from_arrays(arrays, schema=self.layout.schema), self.offsets)
        return UnitData(data.table, sorted(self.rejected + data.rejected, key=lambda r: (r.position, r.offset or 0)))

    def _row(self, position: int, record: Mapping[str, Any]) -> tuple[Any, ...]:
        layout = self.layout
        text = _text([record.get(name) for name in layout.text])
        id_ = f"{self.name}:{position}" if layout.id is None else _id(record.get(layout.id))
        title = None if layout.title is None else _title(record.get(layout.title))
        payload = [_payload(name, record.get(name), type_) for name, type_ in layout.payload]
        return (id_, title, text, *payload, position)


def _text(values: Sequence[Any]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        raise RefusedError("missing_text")
    if not all(isinstance(value, str) for value in there):
        raise RefusedError("bad_value", f"the text is a {type(there[0]).__name__}, not a string")
    return check_unicode(there[0] if len(there) == 1 else "\n".join(filter(None, there)))


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RefusedError("bad_id", f"the id is {'empty' if value == '' else type(value).__name__}")
    text = check_unicode(str(value))
    if len(text.encode()) > MAX_ID_BYTES:
        raise RefusedError("bad_id", f"the id has more than {MAX_ID_BYTES} bytes")
    return text


def _safe_id(layout: Layout, record: Mapping[str, Any]) -> str | None:
    """The id to put in the quarantine line, if there is a usable one."""
    try:
        return None if layout.id is None else _id(record.get(layout.id))
    except RefusedError:
        return None


def _title(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return check_unicode(value) if value else None
    if isinstance(value, int | float):
        return str(value)
    raise RefusedError("bad_value", f"the title is a {type(value).__name__}, not a string")


#: Which plain values a payload column of a type takes; text columns take anything, as JSON.
_TAKES: dict[pa.DataType, tuple[type, ...]] = {
    pa.bool_(): (bool,),
    pa.int64(): (int,),
    pa.float64(): (float, int),
    pa.list_(pa.string()): (list,),
}


def _payload(name: str, value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if type_ == pa.string():
        return check_unicode(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    fits = isinstance(value, _TAKES[type_]) and isinstance(value, bool) == (type_ == pa.bool_())
    if not fits or (type_ == pa.int64() and not -(2**63) <= value < 2**63):
        raise RefusedError("bad_value", f"payload column {name!r} holds {type_} in the other records")
    if isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise RefusedError("bad_value", f"payload column {name!r} holds lists of strings in the other records")
        return [check_unicode(item) for item in value]
    return value


def check_unicode(text: str) -> str:
    """Refuse what has no UTF-8 form: lone surrogates, from an escape or from undecodable bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError("invalid_utf8") from None
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
