"""The documents of an index: id, title, text and payload by row, in a parquet file a segment that is memory-mapped.

Small row groups, so that ten hits decode a few hundred documents and not a million. Knows parquet. Knows no search.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayvec.errors import UserError
from rayvec.failures import storage_errors
from rayvec.indexing.ranking import Rows

#: Ten hits in as many groups of this size are read in 0.6 ms (256 rows: 3 ms). Larger collections get larger groups, so
#: that the footer, which every reader holds, stays small.
GROUP_ROWS = 64
MOST_GROUPS = 16_384


def write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, count: int, path: Path) -> int:
    """Write the documents in order, in row groups of equal size. Returns how many. Raises StorageError."""
    with storage_errors(path):
        return _write(batches, schema, count, path)


def _write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, count: int, path: Path) -> int:
    group_rows = max(GROUP_ROWS, -(-count // MOST_GROUPS))
    waiting: list[pa.RecordBatch] = []
    written = 0
    with pq.ParquetWriter(
        path, schema, compression="lz4", use_dictionary=False, write_statistics=False, write_page_checksum=True
    ) as writer:
        for batch in batches:
            waiting.append(batch)
            table = pa.Table.from_batches(waiting, schema)
            whole = table.num_rows - table.num_rows % group_rows
            if whole:
                writer.write_table(table.slice(0, whole), row_group_size=group_rows)
                waiting = table.slice(whole).to_batches()
                written += whole
        rest = pa.Table.from_batches(waiting, schema)
        writer.write_table(rest, row_group_size=group_rows)
    return written + rest.num_rows


def columns_in(path: Path) -> pa.Schema:
    """The columns of a file of documents."""
    return pq.read_schema(path, memory_map=True).remove_metadata()


class Documents:
    """Reads documents by row. Threads may read at once: each has a reader of its own over the same mapped file."""

    def __init__(self, path: Path, same: Documents | None = None) -> None:
        """same: a reader of the very same file by another name, whose footer and columns are taken over."""
        self._path = path
        self._metadata: pq.FileMetaData = pq.read_metadata(path, memory_map=True) if same is None else same._metadata
        #: Whole columns that were asked for: filters ask for the same ones again.
        self._columns: dict[str, pa.ChunkedArray] = {} if same is None else same._columns
        self.schema: pa.Schema = self._metadata.schema.to_arrow_schema()
        self.names: tuple[str, ...] = tuple(self.schema.names)
        rows = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._local = threading.local()

    @property
    def count(self) -> int:
        """Number of documents."""
        return int(self._metadata.num_rows)

    def read(self, rows: Sequence[int] | Rows, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The documents of these rows, in their order. Raises UserError for an unknown column or row."""
        wanted = np.asarray(rows, dtype=np.int64)
        unknown = sorted(set(columns or ()) - set(self.names))
        if unknown:
            raise UserError(f"unknown column {unknown[0]!r}; the documents have {', '.join(self.names)}")
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.count):
            raise UserError(f"rows must lie between 0 and {self.count - 1}, got {wanted.min()} to {wanted.max()}")
        if not len(wanted):
            return []
        group_of = np.searchsorted(self._starts, wanted, side="right") - 1
        groups, place = np.unique(group_of, return_inverse=True)
        table = self._reader().read_row_groups(groups.tolist(), columns=list(columns or self.names), use_threads=False)
        sizes = self._starts[groups + 1] - self._starts[groups]
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        documents: list[dict[str, Any]] = table.take(first[place] + wanted - self._starts[group_of]).to_pylist()
        return documents

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all documents, in order, which is kept. Raises UserError when there is none of that name."""
        if name not in self.names:
            raise UserError(f"unknown column {name!r}; the documents have {', '.join(self.names)}")
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = self._reader().read(columns=[name], use_threads=False)[name]
        return found

    def _reader(self) -> pq.ParquetFile:
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = pq.ParquetFile(
                self._path, metadata=self._metadata, memory_map=True, pre_buffer=False
            )
        return reader


class SegmentDocuments:
    """Reads documents by row over the files of several segments, each with the row where it starts."""

    def __init__(self, files: Sequence[tuple[int, Documents]], dropped: Rows) -> None:
        self._files = [file for _, file in files]
        self._starts = np.array([start for start, _ in files], np.int64)
        self._dropped = dropped
        self.schema: pa.Schema = self._files[0].schema
        self.names: tuple[str, ...] = self._files[0].names

    @property
    def count(self) -> int:
        """Number of rows, deleted ones too."""
        return sum(file.count for file in self._files)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, deleted ones too, in order. Raises UserError when there is none of that name."""
        return pa.chunked_array([chunk for file in self._files for chunk in file.column(name).chunks])

    def read(self, rows: Sequence[int] | Rows, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The documents of these rows, in their order. Raises UserError for an unknown column, or a row that is not."""
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.count):
            raise UserError(f"rows must lie between 0 and {self.count - 1}, got {wanted.min()} to {wanted.max()}")
        gone = wanted[np.isin(wanted, self._dropped)]
        if len(gone):
            raise UserError(
                f"row {gone[0]} is of a document that was deleted or replaced; take rows that a search found"
            )
        file_of = np.searchsorted(self._starts, wanted, side="right") - 1
        documents: list[dict[str, Any]] = [{}] * len(wanted)
        for number in np.unique(file_of).tolist() if len(wanted) else [0]:
            places = np.flatnonzero(file_of == number)
            found = self._files[number].read(wanted[places] - self._starts[number], columns)
            for place, document in zip(places.tolist(), found, strict=True):
                documents[place] = document
        return documents
