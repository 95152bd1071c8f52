"""Parquet: ranges of rows, Arrow throughout. A damaged row group costs its own rows only.

Units end where row groups end wherever these are small enough, since reading a part of a row group decodes what lies
before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayvec import storage
from rayvec.data.files import Listing
from rayvec.data.readers.base import UNIT_BYTES, BadFileError, Span, inspect
from rayvec.data.records import MAX_ID_BYTES, Layout, refuse_blank, resolve_layout
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import REASONS, Input, Rejected, Unit, UnitData
from rayvec.errors import UserError

Faults = npt.NDArray[np.int8]

_BATCH = 1024
#: A row's fault is a place in this list; 0 is none.
_REASONS = ["", *REASONS]
_UNREADABLE = (pa.ArrowException, OSError)


@dataclass(frozen=True)
class _Footer:
    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]  # rows and bytes of each row group


class ParquetReader:
    """See base.Reader."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """The columns of the first file; every other file must have them, with the same types in the payload."""
        layout: Layout | None = None
        for file, footer in inspect(config, listing.files, _footer):
            columns = {field.name: field.type for field in footer.schema}
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

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """Whole row groups up to `unit_rows` rows together; larger ones in equal parts."""
        footers = dict(inspect(config, listing.files, _footer))
        for file in listing.files:
            if file not in footers:
                yield Span((file,), 0, 0, 0, 0)
                continue
            for start, stop in _cut(footers[file].groups, unit_rows):
                yield Span((file,), start, stop, start, stop - start)

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """The rows [start, stop); those of a damaged row group are refused one by one."""
        try:
            file = _open(unit.uri)
        except BadFileError as error:
            return UnitData(layout.schema.empty_table(), [Rejected(0, None, "damaged", None, None, str(error))])
        parts: list[UnitData] = []
        taker = _Taker(layout, listing.name(unit.uri), config.max_record_bytes)
        with file:
            for group, first, start, stop in _overlaps(file.metadata, unit.start, unit.stop):
                parts.extend(_read_group(file, taker, group, first, start, stop))
        table = pa.concat_tables([layout.schema.empty_table(), *(part.table for part in parts)])
        return UnitData(table, sorted((r for part in parts for r in part.rejected), key=lambda r: r.position))


def _open(uri: str) -> pq.ParquetFile:
    fs, path = storage.filesystem(uri)
    try:
        return pq.ParquetFile(fs.open_input_file(path), page_checksum_verification=True)
    except _UNREADABLE as error:
        _raise_storage_fault(uri, error)
        raise BadFileError(f"not a readable Parquet file ({' '.join(str(error).split())})") from None


def _raise_storage_fault(uri: str, error: Exception) -> None:
    """Raise StorageError when the store failed: the file may be sound, and is not to be quarantined for it."""
    if storage.is_storage_fault(error):
        with storage.storage_errors(uri, "reading"):
            raise error


def _footer(file: Input) -> _Footer:
    with _open(file.uri) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        return _Footer(opened.schema_arrow, tuple((group.num_rows, group.total_byte_size) for group in groups))


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


def _cut(groups: tuple[tuple[int, int], ...], unit_rows: int) -> Iterator[tuple[int, int]]:
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


def _overlaps(metadata: pq.FileMetaData, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(row group, its first row, first and last row wanted of it), rows counted from the file's start."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first < stop and first + rows > start:
            yield group, first, max(start, first), min(stop, first + rows)
        first += rows


def _read_group(
    file: pq.ParquetFile, taker: _Taker, group: int, first: int, start: int, stop: int
) -> Iterator[UnitData]:
    position = first
    columns = taker.layout.columns
    try:
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns, use_threads=False):
            begin, end = max(start, position), min(stop, position + len(batch))
            if begin < end:
                yield taker.take(pa.Table.from_batches([batch]).slice(begin - position, end - begin), begin)
            position += len(batch)
            if position >= stop:
                return
    except _UNREADABLE as error:
        _raise_storage_fault(taker.name, error)
        detail = f"row group {group} cannot be read ({' '.join(str(error).split())})"
        lost = [Rejected(row, None, "damaged", None, None, detail) for row in range(max(start, position), stop)]
        yield UnitData(taker.layout.schema.empty_table(), lost)


@dataclass(frozen=True)
class _Taker:
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
