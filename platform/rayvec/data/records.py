"""Records: what rows of any format must be to become documents; what is refused, and why.

Knows plain values and Arrow arrays. Knows no file format.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayvec.data.json_types import PLAIN, fitted, value_at
from rayvec.data.layout import POSITION, Layout
from rayvec.data.units import Rejected, UnitData
from rayvec.schema import ID, TEXT, TITLE

MAX_ID_BYTES = 512
#: A text of only these is empty: white space, separators, controls, and invisible characters such as U+200B.
_VISIBLE = r"[^\s\p{Z}\p{Cc}\p{Cf}]"

_TITLE_ONLY = "it has a title; source.text_columns that name the title too would keep it"


def content_id(title: str | None, text: str | None) -> str:
    """The id of a document by what it says; equal documents have equal ids, wherever they stand.

    >>> content_id(None, "a") == content_id("", "a") != content_id("a", "a")
    True
    """
    return hashlib.blake2b(f"{title or ''}\n{text or ''}".encode(), digest_size=16).hexdigest()


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
        self._payload = [(name, type_, PLAIN[type_]) for name, type_ in layout.payload]

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
        found = fitted(value, type_, takes)
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
