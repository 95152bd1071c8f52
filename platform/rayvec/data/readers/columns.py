"""Columns: rows of typed tables turned into documents, a column at a time; what Parquet and Arrow files share.

Knows Arrow tables. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayvec import storage
from rayvec.data.files import Listing
from rayvec.data.readers.base import UNIT_BYTES, inspect
from rayvec.data.records import MAX_ID_BYTES, Layout, refuse_blank, resolve_layout
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import REASONS, Input, Rejected, UnitData
from rayvec.errors import UserError

Faults = npt.NDArray[np.int8]

#: What reading a damaged file raises.
UNREADABLE = (pa.ArrowException, OSError)
#: A row's fault is a place in this list; 0 is none.
_REASONS = ["", *REASONS]


def common_layout(config: SourceConfig, listing: Listing, look: Callable[[Input], pa.Schema]) -> Layout:
    """The columns of the first file; every other file must have them, with the same types in the payload.

    `look` gives a file's schema, or raises BadFileError.
    """
    layout: Layout | None = None
    for file, schema in inspect(config, listing.files, look):
        columns = {field.name: field.type for field in schema}
        found = resolve_layout(
            file.uri,
            columns,
            id_column=config.id_column if layout is None else layout.id,
            title_column=config.title_column if layout is None else layout.title,
            text_columns=config.text_columns if layout is None else layout.text,
            payload=config.payload if layout is None else [name for name, _ in layout.payload],
        )
        _check_types(file.uri, columns, found)
        layout = layout or found
        if found.payload != layout.payload:
            differing = [a[0] for a, b in zip(found.payload, layout.payload, strict=True) if a != b]
            raise UserError(
                f"{file.uri}: column {differing[0]!r} has another type than in {listing.files[0].uri}; "
                "leave it out of source.payload, or make the files alike"
            )
    assert layout is not None
    return layout


def _is_text(type_: pa.DataType) -> bool:
    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(check(type_) for check in (*checks, pa.types.is_large_binary, pa.types.is_binary_view))


def _check_types(where: str, columns: dict[str, pa.DataType], layout: Layout) -> None:
    for name in [layout.title, *layout.text]:
        if name is not None and not _is_text(columns[name]):
            raise UserError(f"{where}: column {name!r} is {columns[name]}, not text; name another one")
    if layout.id is not None and not (_is_text(columns[layout.id]) or pa.types.is_integer(columns[layout.id])):
        raise UserError(
            f"{where}: column {layout.id!r} is {columns[layout.id]}, and an id is text or a whole number; "
            "name another one with --set source.id_column=…"
        )


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
    """Raise StorageError when the store failed: the file may be sound, and is not to be quarantined for it."""
    if storage.is_storage_fault(error):
        with storage.storage_errors(uri, "reading"):
            raise error


@dataclass(frozen=True)
class Taker:
    """Turns rows into documents, a column at a time; refuses those that cannot be."""

    layout: Layout
    name: str
    max_bytes: int

    def take(self, rows: pa.Table, first: int) -> UnitData:
        """The documents of these rows, which count from `first`."""
        layout, faults = self.layout, np.zeros(len(rows), dtype=np.int8)
        texts = [_strings(rows[column], faults, "invalid_utf8") for column in layout.text]
        _mark(faults, _all_null(texts), "missing_text")
        text = texts[0] if len(texts) == 1 else _joined(texts)
        _mark(faults, _lengths(text) > self.max_bytes, "record_too_large")
        positions = pa.array(np.arange(first, first + len(rows)), pa.int64())
        ids = self._ids(rows, positions, faults)
        title = pa.nulls(len(rows), pa.string())
        if layout.title is not None:
            title = _strings(rows[layout.title], faults, "invalid_utf8")
        columns = [ids, title, text, *(rows[column] for column, _ in layout.payload), positions]
        taken = [_flat(column).filter(pa.array(faults == 0)) for column in columns]
        data = refuse_blank(pa.Table.from_arrays(taken, schema=layout.schema))
        refused = [self._refuse(row, first, ids, faults) for row in np.flatnonzero(faults).tolist()]
        return UnitData(data.table, data.rejected + refused)

    def _ids(self, rows: pa.Table, positions: pa.Array, faults: Faults) -> pa.Array:
        if self.layout.id is None:
            return pc.binary_join_element_wise(pa.scalar(self.name), positions.cast(pa.string()), ":")
        column = rows[self.layout.id]
        whole = pa.types.is_integer(column.type)
        ids = _flat(column.cast(pa.string())) if whole else _strings(column, faults, "bad_id")
        length = _lengths(ids)
        _mark(faults, (length == 0) | (length > MAX_ID_BYTES), "bad_id")
        return ids

    def _refuse(self, row: int, first: int, ids: pa.Array, faults: Faults) -> Rejected:
        reason = _REASONS[faults[row]]
        return Rejected(first + row, None, reason, None if reason == "bad_id" else ids[row].as_py())


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _strings(column: pa.ChunkedArray, faults: Faults, reason: str) -> pa.Array:
    """The column as strings; rows whose bytes are not UTF-8 become null and are marked."""
    array = _flat(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    raw = array.cast(pa.binary())
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
