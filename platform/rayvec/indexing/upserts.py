"""Which rows an update replaces or deletes: ids looked up in the documents of a version, a stretch at a time.

A document that was embedded as windows has a row for each of them: there its own id, `parent_id`, is what is looked up,
so that no window of the old text stays beside the new ones.

Knows Arrow columns, documents tables and row numbers. Knows no vectors and no Ray. Ids stay in Arrow: no Python string
is made of them.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayvec import storage
from rayvec.data.ids import Hashes, concatenate, hash_ids
from rayvec.errors import UserError
from rayvec.indexing.ranking import NO_ROW, Rows
from rayvec.indexing.searcher import DOCUMENTS
from rayvec.indexing.segments import Segment, load_dropped, local, segments_of
from rayvec.indexing.vectors import Part, read_slice, slices
from rayvec.schema import ID, PARENT_ID

#: Ids read at once, and compared with all that are looked for.
ROWS_AT_ONCE = 1 << 20
#: Ids hashed at once: hashing makes a Python string of each.
HASHED_AT_ONCE = 1 << 16

Mask = npt.NDArray[np.bool_]


def key_of(columns: Sequence[str]) -> str:
    """The column that names a document."""
    return PARENT_ID if PARENT_ID in columns else ID


@dataclass(frozen=True)
class Matches:
    """Live rows of the documents looked for, ascending, which of the ids each is of, and which were found in one."""

    rows: Rows
    of_row: Rows
    found: Mask


#: Columns of ids that were read, by the checksum of their file and the first of their row groups.
Kept = MutableMapping[tuple[str, str, int], pa.ChunkedArray]


def match(folder: Path, manifest: Mapping[str, Any], wanted: pa.Array, kept: Kept | None = None) -> Matches:
    """Look ids up in a version, each of which `wanted` holds once. An id that stands in several rows gives them all.

    kept: for who looks up again and again: what is in it is not read, and what is read is put into it.
    """
    found = np.zeros(len(wanted), np.bool_)
    rows, of_row = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start, keys, live in live_columns(folder, manifest, None, kept):
        places = pc.index_in(keys, value_set=wanted).fill_null(-1).to_numpy().astype(np.int64)
        hit = (places >= 0) & live
        found[places[hit]] = True
        rows.append(np.flatnonzero(hit) + start)
        of_row.append(places[hit])
    return Matches(np.concatenate(rows), np.concatenate(of_row), found)


def rows_with(folder: Path, manifest: Mapping[str, Any], ids: pa.Array) -> Rows:
    """The live row of each of these ids, -1 where there is none; of rows with the same id the last."""
    rows = np.full(len(ids), NO_ROW, np.int64)
    for start, there, live in live_columns(folder, manifest, ID):
        places = pc.index_in(there, value_set=ids).fill_null(-1).to_numpy().astype(np.int64)
        hit = (places >= 0) & live
        rows[places[hit]] = np.flatnonzero(hit) + start
    return rows


def live_columns(
    folder: Path, manifest: Mapping[str, Any], column: str | None, kept: Kept | None = None
) -> Iterator[tuple[int, pa.ChunkedArray, Mask]]:
    """One column of the documents (None: that which names them) in stretches: first row, values, which are live."""
    dropped = load_dropped(folder, manifest)
    for segment in segments_of(manifest):
        with pq.ParquetFile(segment.file(folder, DOCUMENTS), memory_map=True) as file:
            name = column or key_of(file.schema_arrow.names)
            start = segment.start
            for groups in _stretches(file.metadata):
                key = (_sha256(manifest, segment), name, groups[0])
                values = None if kept is None else kept.get(key)
                if values is None:
                    values = file.read_row_groups(groups, columns=[name], use_threads=False)[name]
                    with contextlib.suppress(ValueError):  # larger than all that may be kept
                        if kept is not None:
                            kept[key] = values
                live = np.ones(len(values), np.bool_)
                gone = local(dropped, start, len(values))
                live[[] if gone is None else gone] = False
                yield start, values, live
                start += len(values)


def _sha256(manifest: Mapping[str, Any], segment: Segment) -> str:
    name = f"{segment.folder}/{DOCUMENTS}" if segment.folder else DOCUMENTS
    return str(manifest.get("files", {}).get(name, {}).get("sha256"))


def _stretches(metadata: pq.FileMetaData) -> Iterator[list[int]]:
    groups: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= ROWS_AT_ONCE:
            yield groups
            groups, rows = [], 0
    if groups:
        yield groups


def live_hashes(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Hashes]:
    """The hashes of the ids of all live rows, in stretches."""
    for _, ids, live in live_columns(folder, manifest, ID):
        yield hashes_of(ids.filter(pa.array(live)))


def hashes_of(ids: pa.Array | pa.ChunkedArray) -> Hashes:
    """The hash of each id, with few Python strings at a time."""
    return concatenate([hash_ids(ids.slice(start, HASHED_AT_ONCE)) for start in range(0, len(ids), HASHED_AT_ONCE)])


def ids_of(parts: Sequence[Part], columns: Sequence[str]) -> tuple[pa.Array, Rows]:
    """The different documents of embeddings parts, and the rows whose id comes again later: there the last one counts.

    columns: those that the index's documents have.
    """
    count = parts[-1].stop if parts else 0
    names = list(dict.fromkeys([ID, key_of(columns)]))
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    batches = [batch for piece in slices(parts, 0, count) for batch in read_slice(piece, names)]
    table = pa.Table.from_batches([batch.select(names).cast(schema) for batch in batches], schema)
    numbers = pc.index_in(table[ID], value_set=pc.unique(table[ID])).to_numpy()
    last = np.zeros(int(numbers.max(initial=-1)) + 1, np.int64)
    last[numbers] = np.arange(len(numbers))  # of equal numbers the last one stays
    return pc.unique(table[names[-1]]), np.flatnonzero(last[numbers] != np.arange(len(numbers)))


def read_ids(given: str | Sequence[str]) -> pa.Array:
    """The different ids of a text file, one a line, or of a list. Raises UserError when the file cannot be read."""
    if not isinstance(given, str):
        return pa.array(given, pa.string()).unique()
    if not given:
        return pa.array([], pa.string())
    try:
        text = pa.array([storage.read_bytes(given).removeprefix(codecs.BOM_UTF8)], pa.large_binary()).cast(
            pa.large_string()
        )
    except FileNotFoundError:
        raise UserError(f"delete = {given}: there is no such file; give a text file of ids, one a line") from None
    except pa.ArrowInvalid:
        raise UserError(f"delete = {given}: the file is not UTF-8 text; give a text file of ids, one a line") from None
    lines = pc.utf8_rtrim(pc.split_pattern(text, "\n").flatten(), "\r")
    return pc.unique(lines.filter(pc.not_equal(lines, ""))).cast(pa.string())
