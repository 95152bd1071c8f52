"""Documents of a request as a table of the index's columns, and documents of the index as a client would give them.

Knows Arrow tables, the index's documents and the errors of a client. Knows no version that is being made, no route.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayvec.data.records import is_visible
from rayvec.encoding.direct import joined
from rayvec.indexing import segments
from rayvec.indexing.documents import Documents
from rayvec.indexing.searcher import DOCUMENTS
from rayvec.indexing.updates import Before
from rayvec.indexing.upserts import Matches, key_of
from rayvec.schema import CHAR_START, DOCUMENT, ID, TEXT, WINDOW, WINDOW_FIELDS
from rayvec.serving.columns import MisfitError, column
from rayvec.serving.problems import invalid, shown_name
from rayvec.serving.schemas import Document

Values = dict[str, Any]


def fields_of(before: Before) -> list[pa.Field]:
    """The columns of documents that a client gives: id, title, text, and the payload without what windows add."""
    carried = {field.name for field in WINDOW_FIELDS}
    there = pq.read_schema(before.folder / DOCUMENTS, memory_map=True)
    payload = [there.field(name) for name in before.manifest["payload"] if name not in carried]
    return [*DOCUMENT, *payload]


def table_of(documents: Sequence[Document], fields: Sequence[pa.Field]) -> pa.Table:
    """Documents as the embed job reads them. Raises Problem naming the document and the column that does not fit."""
    own = set(DOCUMENT.names)
    payload = [field for field in fields if field.name not in own]
    known = {field.name for field in payload}
    for place, document in enumerate(documents):
        unknown = sorted(document.payload.keys() - known)
        if unknown:
            has = ", ".join(sorted(known)) or "none beside id, title and text"
            message = f"documents: {_where(place, unknown[0])} is no column of this index; it has {has}"
            raise invalid(message, _param(place, unknown[0]))
    blank = [place for place, document in enumerate(documents) if not is_visible(document.text)]
    if blank:
        raise invalid(f"documents: the text of document {blank[0]} shows nothing", f"documents.{blank[0]}.text")
    columns = [
        pa.array([document.id for document in documents], pa.string()),
        pa.array([document.title or None for document in documents], pa.string()),
        pa.array([document.text for document in documents], pa.string()),
    ]
    for one in payload:
        try:
            columns.append(column([document.payload.get(one.name) for document in documents], one.type))
        except MisfitError as error:
            message = f"documents: {_where(error.row, one.name)} is a column of {one.type}, and {error}"
            raise invalid(message, _param(error.row, one.name)) from None
    return pa.table(columns, schema=pa.schema(list(fields)))


def _where(place: int, name: str) -> str:
    return f"payload.{shown_name(name)} of document {place}"


def _param(place: int, name: str) -> str:
    return f"documents.{place}.payload.{shown_name(name)}"


def documents_of(before: Before, wanted: pa.Array, matches: Matches) -> dict[str, Values]:
    """What the index holds of these documents now, as a client gives it; texts that were not kept are missing."""
    ids, names = wanted.to_pylist(), [field.name for field in fields_of(before)]
    rows: dict[str, list[Values]] = {}
    for segment in segments.segments_of(before.manifest):
        inside = (matches.rows >= segment.start) & (matches.rows < segment.stop)
        if inside.any():
            found = Documents(segment.file(before.folder, DOCUMENTS)).read(matches.rows[inside] - segment.start)
            for number, values in zip(matches.of_row[inside].tolist(), found, strict=True):
                rows.setdefault(ids[number], []).append(values)
    return {id_: _whole(id_, values, names) for id_, values in rows.items()}


def _whole(id_: str, rows: list[Values], names: Sequence[str]) -> Values:
    """One document from its row, or from those of its windows."""
    first = rows[0]
    whole = {name: first[name] for name in names if name in first}
    if key_of(list(first)) != ID and TEXT in first:
        ordered = sorted(rows, key=lambda row: row[WINDOW])
        whole[TEXT] = joined([row[CHAR_START] for row in ordered], [row[TEXT] for row in ordered])
    return whole | {ID: id_}
