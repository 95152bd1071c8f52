"""Documents that come by themselves, a few at a time, embedded as a run of the embed job would embed them.

The text that is read (title, instruction, windows, length), the checks of its vector and the stored type are those of
`encoding.work`; what it leaves out is what a long run needs: units, markers of attempts, quarantine files. Knows
encoders and the artifact. Knows no source, no index, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayvec import schema, storage
from rayvec.data.embeddings import CURRENT, EmbeddingsDataset, manifest_uri
from rayvec.data.units import Unit, UnitData
from rayvec.encoding.attempts import Outcome
from rayvec.encoding.publish import manifest
from rayvec.encoding.shards import Plan
from rayvec.encoding.sink import Sink, part_bytes, record_of
from rayvec.encoding.work import (
    POSITION,
    Prepared,
    Work,
    cut,
    documents_of_rows,
    encoded,
    gather,
    part_of,
    retry_unsound,
    texts_of,
)
from rayvec.errors import StorageError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.encoder import Tokenizing, Vectorizing

#: The one unit of such embeddings.
UNIT = "00000"


class _Given:
    """A Readable that is never read: the documents are at hand."""

    def read(self, unit: Unit) -> UnitData:
        raise AssertionError(unit)


def work_of(settings: Mapping[str, Any], reference: str, fingerprint: Fingerprint) -> Work:
    """How documents are embedded, from the settings in the manifest of embeddings."""
    known = {field.name for field in fields(Work)} - {"source"}
    return Work(
        source=_Given(),
        output="",
        reference=reference,
        fingerprint=fingerprint,
        load_encoder=_not_loaded,
        load_tokenizer=_not_loaded,
        **{name: value for name, value in settings.items() if name in known},
    )


def _not_loaded(reference: str) -> Any:
    raise AssertionError(reference)


def embed(work: Work, documents: pa.Table, tokenizer: Tokenizing, encoder: Vectorizing) -> tuple[pa.Table, list[int]]:
    """A part as the embed job makes it: a row a document, or a window; and the documents that are not in it.

    documents: id, title, text and payload, of different ids. Left out are those whose vector is not finite, or zero,
    when they are encoded alone too. tokenizer: set to read as much as the work says. Whatever the encoder raises comes
    through.
    """
    count = documents.num_rows
    documents = documents.append_column(POSITION, pa.array(np.arange(count)))
    texts, before_N = texts_of(documents, work.title)
    tokens, windows = cut(work, tokenizer, texts)
    prepared = Prepared(documents, tokens, windows.after(before_N), [])
    document_R = documents_of_rows(work, prepared)
    everything = np.arange(count)
    outcome = Outcome([(everything, encoded(work, encoder, prepared, everything))])
    vectors_RD = gather(work, outcome, document_R)
    retry_unsound(work, encoder, prepared, document_R, vectors_RD, outcome)
    refused = sorted(outcome.failures)
    return part_of(work, prepared, document_R, vectors_RD, np.flatnonzero(~np.isin(document_R, refused))), refused


def publish_part(place: Path, table: pa.Table, work: Work, settings: Mapping[str, Any]) -> EmbeddingsDataset:
    """Write a part as an embeddings folder of its own, and read it back. Raises StorageError when it is not the same.

    settings: as they are to stand in its manifest. Not synced: it lies in a draft, whose commit syncs all that is new.
    """
    data = part_bytes(table)
    file = f"data/{UNIT}-{storage.sha256_bytes(data)[:8]}.parquet"
    storage.write_bytes(place / file, data, durable=False)
    if storage.read_bytes(place / file) != data:
        raise StorageError(f"{place / file} does not read back as it was written; check the disk and write again")
    plan = Plan((), (), work.fingerprint, settings)
    content = manifest(plan, [record_of(UNIT, file, table, data)], Sink(str(place)), work.reference)
    storage.write_bytes(manifest_uri(str(place), 1), storage.to_json({**content, "version": 1}), durable=False)
    storage.write_bytes(place / CURRENT, b"v1\n", durable=False)
    return EmbeddingsDataset.open(str(place), 1)


def text_of(rows: pa.Table) -> str | None:
    """The text of one document from its row, or from the rows of its windows in order; None where it was not kept."""
    if schema.TEXT not in rows.schema.names:
        return None
    starts = rows[schema.CHAR_START].to_pylist() if schema.WINDOW in rows.schema.names else [0]
    return joined(starts, rows[schema.TEXT].to_pylist())


def joined(starts: Sequence[int], passages: Sequence[str]) -> str:
    """A text from its windows in order, which overlap and leave nothing out.

    >>> joined([0, 3], ["one two", " two three"])
    'one two three'
    """
    text = ""
    for start, passage in zip(starts, passages, strict=True):
        text = text[:start] + passage
    return text
