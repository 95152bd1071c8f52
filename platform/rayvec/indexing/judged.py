"""The rows of given documents: read ids only, part by part, on Ray. Knows parts and ids. Knows no vectors.

A document embedded as windows has several rows; they are all its rows.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rayvec.indexing import tasks
from rayvec.indexing.vectors import Part, Slice, read_slice
from rayvec.schema import ID, PARENT_ID


def rows_of(parts: tuple[Part, ...], ids: frozenset[str]) -> dict[int, str]:
    """The document's id of every row that is of one of these documents, by row, ascending."""
    wanted = pa.array(sorted(ids), pa.string())
    found: dict[int, str] = {}
    for rows in tasks.each(_rows_of, [(part, wanted) for part in parts]):
        found |= rows
    return found


def _rows_of(part: Part, wanted: pa.Array) -> dict[int, str]:
    found: dict[int, str] = {}
    start = part.start
    for batch in read_slice(Slice(part, 0, part.rows), [ID, PARENT_ID]):
        column = batch.column(PARENT_ID if PARENT_ID in batch.schema.names else ID).cast(pa.string())
        places = pc.indices_nonzero(pc.is_in(column, value_set=wanted))
        rows = (places.to_numpy() + start).tolist()
        found.update(zip(rows, column.take(places).to_pylist(), strict=True))
        start += batch.num_rows
    return found
