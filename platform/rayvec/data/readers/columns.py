"""Columns: rows of typed tables turned into documents, a column at a time; what Parquet and Arrow files share.

Knows Arrow tables. Knows no file format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayvec.data.files import Listing
from rayvec.data.layout import Layout, named_columns, resolve_layout
from rayvec.data.readers.base import UNIT_BYTES, inspect
from rayvec.data.records import MAX_ID_BYTES, content_id, refuse_blank
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import REASONS, Input, Rejected, UnitData
from rayvec.errors import UserError
from rayvec.failures import input_errors, is_storage_fault

Faults = npt.NDArray[np.int8]

#: What reading a damaged file raises.
UNREADABLE = (pa.ArrowException, OSError)
#: A row's fault is a place in this list; 0 is none.
_REASONS = ["", *REASONS]


def common_layout(config: SourceConfig, listing: Listing, look: Callable[[Input], pa.Schema]) -> Layout:
    """The columns of all files, each of the type that all of its values fit; not every file need have every column.

    `look` gives a file's schema, or raises BadFileError.
    """
    file_of: dict[pa.Schema, str] = {}
    for file, schema in inspect(config, listing.files, look):
        file_of.setdefault(schema.remove_metadata(), file.uri)
    types: dict[str, list[pa.DataType]] = {}
    for schema, uri in file_of.items():
        repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if repeated:
            raise UserError(f"{uri} names column {repeated[0]!r} more than once; write it with one of each name")
        for name in dict.fromkeys([*schema.names, *named_columns(config)]):
            found = _type_at(schema, name)
            if found is not None:
                types.setdefault(name, []).append(found)
    where = next(iter(file_of.values())) if len(file_of) == 1 else config.where
    common = {name: _common_type(found) for name, found in types.items()}
    mixed = {name: told for name, type_ in common.items() if type_ == pa.string() and (told := _mixture(types[name]))}
    layout = resolve_layout(where, common, config, mixed)
    for schema, uri in file_of.items():
        _check(config, uri, schema, layout)
    return layout


def _check(config: SourceConfig, where: str, schema: pa.Schema, layout: Layout) -> None:
    """Raise UserError for columns that cannot be what they are to be, and for what a file lacks that others have."""
    for name in [layout.title, *layout.text]:
        type_ = None if name is None else _type_at(schema, name)
        if type_ is not None and not (_is_text(type_) or _is_number(_plain(type_)) or pa.types.is_null(type_)):
            raise UserError(f"{where}: column {name!r} is {type_}, not text; name another one{_inside(type_, name)}")
    id_type = None if layout.id is None else _type_at(schema, layout.id)
    if id_type is not None and not (_is_text(id_type) or _is_number(id_type) or pa.types.is_null(id_type)):
        raise UserError(
            f"{where}: column {layout.id!r} is {id_type}, and an id is text or a whole number; "
            "name another one with --set source.id_column=…"
        )
    lacks = [layout.id] if layout.id is not None and id_type is None and layout.missing_id != "make" else []
    lacks += [] if any(_type_at(schema, name) is not None for name in layout.text) else [layout.text[0]]
    if lacks and config.on_bad_input == "fail":
        cure = "make ids with --set source.missing_id=make" if lacks == [layout.id] else "name all text columns"
        raise UserError(
            f"{where} has no column {lacks[0]!r}, which other files have; {cure}, or quarantine its records with "
            "--set source.on_bad_input=quarantine"
        )


def _inside(type_: pa.DataType, name: str | None) -> str:
    if not pa.types.is_struct(type_):
        return ""
    return f", or one inside of it: {', '.join(repr(f'{name}.{field.name}') for field in type_)}"


def _is_text(type_: pa.DataType) -> bool:
    type_ = _plain(type_)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(type_) for check in checks)


def _is_number(type_: pa.DataType) -> bool:
    """Whether ids may be of this type; pandas makes whole numbers floats where some are missing."""
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _written(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as text, as JSON writes them, NaN (pandas' sign for nothing) as null; other columns as they are."""
    array = _flat(column)
    type_ = _plain(array.type)
    if not _is_number(type_):
        return column
    array = array.cast(type_)
    if pa.types.is_integer(type_):
        return pa.chunked_array([array.cast(pa.string())])
    # NumPy writes a float32 by its own digits: 0.1, where as a float64 it is 0.10000000149011612.
    numbers = zip(array.to_numpy(zero_copy_only=False), _bools(array.is_valid()), strict=True)
    return pa.chunked_array([pa.array([str(x) if valid and x == x else None for x, valid in numbers], pa.string())])


def _type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of a column, or of one inside others; None where there is none."""
    fields, rest = {field.name: field.type for field in schema}, path
    while rest not in fields:
        head, dot, rest = rest.partition(".")
        inner = fields.get(head) if dot else None
        if inner is None or not pa.types.is_struct(inner):
            return None
        fields = {field.name: field.type for field in inner}
    return fields[rest]


def column_at(rows: pa.Table, path: str) -> pa.ChunkedArray:
    """A column, or one inside others, null where what holds it is; all null where there is none."""
    if path in rows.column_names:
        return rows[path]
    head, dot, rest = path.partition(".")
    if not dot or head not in rows.column_names or not pa.types.is_struct(rows.schema.field(head).type):
        return pa.chunked_array([pa.nulls(len(rows))])
    column = _flat(rows[head])
    return column_at(pa.Table.from_arrays(column.flatten(), [field.name for field in column.type]), rest)


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type without what only says how values are stored: categories, extensions, views."""
    if isinstance(type_, pa.BaseExtensionType):
        return _plain(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if pa.types.is_list(type_):
        return pa.list_(_plain(type_.value_type))
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(type_, type_)


def _common_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """The type that all values fit; text where there is none."""
    plain = [_plain(type_) for type_ in types if not pa.types.is_null(type_)]
    texts = sum(map(_is_text, plain))
    if not plain or (texts and len(set(plain)) > 1):
        return pa.string()
    schemas = [pa.schema([("column", type_)]) for type_ in dict.fromkeys(plain)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except pa.ArrowException:
        return pa.string()


def _mixture(types: Iterable[pa.DataType]) -> str:
    """Which types values are of, where they are of several and not all are text; empty otherwise."""
    plain = {_plain(type_) for type_ in types if not pa.types.is_null(type_)}
    return " and ".join(sorted(map(str, plain))) if len(plain) > 1 and not all(map(_is_text, plain)) else ""


def fitted(column: pa.ChunkedArray, type_: pa.DataType) -> tuple[pa.ChunkedArray, int]:
    """The column as one of a type, and how many values are null because they do not fit it; text takes all, as JSON."""
    if column.type == type_:
        return column, 0
    try:
        return column.cast(type_), 0
    except pa.ArrowException:
        values = [_fitted(value, type_) if value.is_valid else None for value in column]
    return pa.chunked_array([pa.array(values, type_)]), values.count(None) - column.null_count


def _fitted(value: pa.Scalar, type_: pa.DataType) -> pa.Scalar | None:
    try:
        return value.cast(type_)
    except pa.ArrowException:
        is_nested = pa.types.is_string(type_) and pa.types.is_nested(value.type)
        return pa.scalar(json.dumps(value.as_py(), ensure_ascii=False, default=str)) if is_nested else None


def cut(groups: Iterable[tuple[int, int]], unit_rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that become units: whole groups up to `unit_rows` rows together, larger groups in equal parts.

    groups: rows and bytes of each, in order.
    """
    start = end = held = 0
    for rows, size in groups:
        if end > start and (end + rows - start > unit_rows or held + size > UNIT_BYTES):
            yield start, end
            start, held = end, 0
        parts = max(-(-rows // unit_rows), min(rows, -(-size // UNIT_BYTES)))
        for part in range(1, parts):
            yield start, end + rows * part // parts
            start = end + rows * part // parts
        held = size if parts > 1 else held + size
        end += rows
        if parts > 1:
            yield start, end
            start, held = end, 0
    if end > start:
        yield start, end


def raise_storage_fault(uri: str, error: Exception) -> None:
    """Raise StorageError when store or machine failed: the file may be sound, and is not to be quarantined for it."""
    if is_storage_fault(error):
        with input_errors(uri):
            raise error


@dataclass(frozen=True)
class Taker:
    """Turns rows into documents, a column at a time; refuses those that cannot be."""

    layout: Layout
    name: str
    max_bytes: int
    base: int = 0

    def take(self, rows: pa.Table, first: int) -> UnitData:
        """The documents of these rows, which count from `first`; their positions count from `base` on."""
        layout, faults = self.layout, np.zeros(len(rows), dtype=np.int8)
        texts = [_strings(_written(column_at(rows, column)), faults, "invalid_utf8") for column in layout.text]
        _mark(faults, _all_null(texts), "missing_text")
        text = texts[0] if len(texts) == 1 else _joined(texts)
        _mark(faults, _lengths(text) > self.max_bytes, "record_too_large")
        title = pa.nulls(len(rows), pa.string())
        if layout.title is not None:
            title = _strings(_written(column_at(rows, layout.title)), faults, "invalid_utf8")
        ids = self._ids(rows, first, title, text, faults)
        payload = [fitted(column_at(rows, name), type_) for name, type_ in layout.payload]
        positions = pa.array(np.arange(first, first + len(rows)) + self.base, pa.int64())
        columns = [ids, title, text, *(column for column, _ in payload), positions]
        taken = [_flat(column).filter(pa.array(faults == 0)) for column in columns]
        data = refuse_blank(pa.Table.from_arrays(taken, schema=layout.schema))
        refused = [self._refuse(row, first, ids, faults) for row in np.flatnonzero(faults).tolist()]
        nulled = Counter({name: count for (name, _), (_, count) in zip(layout.payload, payload, strict=True) if count})
        given = Counter({name: len(rows) - column_at(rows, name).null_count for name, _ in layout.payload})
        return UnitData(data.table, data.rejected + refused, nulled, given)

    def _ids(self, rows: pa.Table, first: int, title: pa.Array, text: pa.Array, faults: Faults) -> pa.Array:
        if self.layout.id is None:
            return self._made(first, title, text)
        column = column_at(rows, self.layout.id)
        if _is_number(column.type):
            whole, _ = fitted(column, column.type if pa.types.is_integer(column.type) else pa.int64())
            ids = _flat(whole.cast(pa.string()))
        else:
            ids = _strings(column, faults, "bad_id")
        length = _lengths(ids)
        if self.layout.missing_id == "make":
            missing = (length == 0) & (faults != _REASONS.index("bad_id"))
            ids = pc.if_else(pa.array(missing), self._made(first, title, text), ids)
            length = _lengths(ids)
        _mark(faults, (length == 0) | (length > MAX_ID_BYTES), "bad_id")
        return ids

    def _made(self, first: int, title: pa.Array, text: pa.Array) -> pa.Array:
        if self.layout.make_ids == "path":
            positions = pa.array(np.arange(first, first + len(text)), pa.int64()).cast(pa.string())
            return pc.binary_join_element_wise(pa.scalar(self.name), positions, ":")
        pairs = zip(title.to_pylist(), text.to_pylist(), strict=True)
        return pa.array([content_id(head, body) for head, body in pairs], pa.string())

    def _refuse(self, row: int, first: int, ids: pa.Array, faults: Faults) -> Rejected:
        reason = _REASONS[faults[row]]
        return Rejected(self.base + first + row, None, reason, None if reason == "bad_id" else ids[row].as_py())


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _strings(column: pa.ChunkedArray, faults: Faults, reason: str) -> pa.Array:
    """The column as strings; rows whose bytes are not UTF-8 become null and are marked."""
    array = _flat(column)
    raw = array.cast(_plain(array.type)).cast(pa.binary())
    try:
        return raw.cast(pa.string())  # this checks the bytes; a column that says it is text is not checked on reading
    except pa.ArrowInvalid:
        values = [_decoded(value) for value in raw.to_pylist()]
    strings = pa.array(values, pa.string())
    _mark(faults, _bools(strings.is_null()) & _bools(raw.is_valid()), reason)
    return strings


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _bools(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _lengths(array: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each string; 0 for null."""
    return np.asarray(pc.fill_null(pc.binary_length(array), 0), dtype=np.int64)


def _all_null(columns: list[pa.Array]) -> npt.NDArray[np.bool_]:
    return np.all([_bools(column.is_null()) for column in columns], axis=0)


def _joined(columns: list[pa.Array]) -> pa.Array:
    """The texts of several columns on lines of their own; null and empty ones leave no line."""
    filled = [pc.if_else(pc.equal(column, ""), None, column) for column in columns]
    return pc.binary_join_element_wise(*filled, "\n", null_handling="skip")


def _mark(faults: Faults, rows: npt.NDArray[np.bool_], reason: str) -> None:
    """Note a reason for these rows, unless they have one already."""
    faults[rows & (faults == 0)] = _REASONS.index(reason)
