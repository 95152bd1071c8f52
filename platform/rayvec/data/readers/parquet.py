"""Parquet: ranges of rows, Arrow throughout. A damaged row group costs its own rows only.

Units end where row groups end wherever these are small enough, since reading a part of a row group decodes what lies
before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from rayvec import storage
from rayvec.data.files import Listing
from rayvec.data.layout import Layout
from rayvec.data.readers.base import ALONE, BadFileError, Span, grouped, inspect
from rayvec.data.readers.columns import UNREADABLE, Taker, common_layout, cut, raise_storage_fault
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import Input, Piece, Rejected, Unit, UnitData

_BATCH = 1024


@dataclass(frozen=True)
class _Footer:
    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]  # rows and bytes of each row group


class ParquetReader:
    """See base.Reader."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See columns.common_layout."""
        return common_layout(config, listing, lambda file: _footer(file).schema)

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """Whole row groups up to `unit_rows` rows together; larger ones in equal parts."""
        footers = dict(inspect(config, listing.files, _footer))
        return grouped((_spans(file, footers.get(file), unit_rows) for file in listing.files), unit_rows)

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """The rows [start, stop); those of a damaged row group are refused one by one."""
        parts = [UnitData(layout.schema.empty_table())]
        for piece in unit.pieces():
            taker = Taker(layout, listing.name(piece.uri), config.max_record_bytes, piece.base)
            parts.extend(_read_piece(taker, piece))
        return UnitData.joined(parts)


def _spans(file: Input, footer: _Footer | None, unit_rows: int) -> tuple[list[Span], int]:
    if footer is None:
        return [Span((file,), 0, 0, 0, 0)], ALONE
    spans = [Span((file,), start, stop, start, stop - start) for start, stop in cut(footer.groups, unit_rows)]
    return spans, sum(size for _, size in footer.groups)


def _read_piece(taker: Taker, piece: Piece) -> Iterator[UnitData]:
    try:
        file = _open(piece.uri)
    except BadFileError as error:
        lost = [Rejected(piece.base, None, "damaged", None, None, str(error))]
        yield UnitData(taker.layout.schema.empty_table(), lost)
        return
    with file:
        stop = file.metadata.num_rows if piece.stop is None else piece.stop
        for group, first, start, end in _overlaps(file.metadata, piece.start, stop):
            yield from _read_group(file, piece.uri, taker, group, first, start, end)


def _open(uri: str) -> pq.ParquetFile:
    fs, path = storage.filesystem(uri)
    try:
        return pq.ParquetFile(fs.open_input_file(path), page_checksum_verification=True)
    except UNREADABLE as error:
        raise_storage_fault(uri, error)
        raise BadFileError(f"not a readable Parquet file ({' '.join(str(error).split())})") from None


@lru_cache(1 << 16)  # asked for once for the columns, and once for the rows
def _footer(file: Input) -> _Footer:
    with _open(file.uri) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        return _Footer(opened.schema_arrow, tuple((group.num_rows, group.total_byte_size) for group in groups))


def _overlaps(metadata: pq.FileMetaData, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(row group, its first row, first and last row wanted of it), rows counted from the file's start."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first < stop and first + rows > start:
            yield group, first, max(start, first), min(stop, first + rows)
        first += rows


def _read_group(
    file: pq.ParquetFile, uri: str, taker: Taker, group: int, first: int, start: int, stop: int
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
    except UNREADABLE as error:
        raise_storage_fault(uri, error)
        detail = f"row group {group} cannot be read ({' '.join(str(error).split())})"
        rows = range(max(start, position), stop)
        lost = [Rejected(taker.base + row, None, "damaged", None, None, detail) for row in rows]
        yield UnitData(taker.layout.schema.empty_table(), lost)
