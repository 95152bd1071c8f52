"""The sink: one immutable Parquet part a unit, and the record that commits it.

A part is named by its unit and its content, written aside, read back and compared before its record is put; what has
no record did not happen. Writing a unit twice gives the same files. Knows Parquet and the layout of the output folder.
Knows no source, no encoder, no Ray.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rayvec import schema, storage, uris
from rayvec.data.embeddings import document_ids, read_part
from rayvec.data.ids import WORDS, Hashes, digest_ids, hash_ids
from rayvec.encoding.lengths import counted
from rayvec.errors import StorageError
from rayvec.faults import failpoint

DUPLICATE = "duplicate"
#: Rows of a row group: small enough that a reader of some columns or rows skips the rest.
ROW_GROUP = 4096
PAGE_BYTES = 8 << 20
#: Numbers that pyarrow's writer takes at a time: with its 1,024, a vector's worth, it spends 3 to 13 % more.
WRITE_BATCH = 1 << 16
#: The path of the vectors inside a Parquet file: a list's only child.
VECTORS = f"{schema.EMBEDDING}.list.element"

Line = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What a unit came to. Every record of the input is one of `documents`, `quarantined` or `duplicates`."""

    unit: str
    file: str
    #: Of the part: one a document, or one a window.
    rows: int
    documents: int
    bytes: int
    sha256: str
    quarantined: int
    duplicates: int
    truncated: int
    tokens: int
    #: Rows by their number of tokens, and those of them that were cut, in the classes of `lengths.ENDS`.
    lengths: Sequence[int]
    lengths_truncated: Sequence[int]
    #: Of the ids of its documents.
    id_digest: str
    #: How many records were quarantined for which reason.
    reasons: Mapping[str, int]
    #: Of `quarantine/<unit>.jsonl`; None when nothing was refused.
    quarantine_sha256: str | None
    #: How many payload values of which column did not fit it and are null.
    nulled: Mapping[str, int] = field(default_factory=dict)
    #: How many payload values of which column there were, those included.
    given: Mapping[str, int] = field(default_factory=dict)
    #: How many values there were of which columns that the plan did not know, and that are not carried.
    later: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the unit's record, and its entry in the manifest."""
        return asdict(self)

    @property
    def input_records(self) -> int:
        """Records of the input that this accounts for."""
        return self.documents + self.quarantined + self.duplicates


@dataclass(frozen=True)
class Sink:
    """The output folder of a run. Plain data, so it can be sent to workers."""

    output: str

    def record(self, unit: str) -> Record | None:
        """The record of a committed unit."""
        try:
            return Record(**storage.read_json(self._record_uri(unit)))
        except FileNotFoundError:
            return None

    def committed(self, units: Sequence[str]) -> dict[str, Record]:
        """The units that are done: recorded, with files of the recorded size. Three listings, and one read a record."""
        sizes = {
            f"{folder}/{name}": bytes_
            for folder in ("data", "ids")
            for name, bytes_ in storage.list_sizes(uris.join(self.output, folder)).items()
        }
        names = storage.list_sizes(uris.join(self.output, "units"))
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(self.record, [unit for unit in units if f"{unit}.json" in names])
            records = [record for record in found if record is not None]
        whole = {record.unit: record for record in records if _is_whole(record, sizes)}
        for record in records:
            if record.unit not in whole:  # a file was deleted or cut short after the commit: the unit is done again
                storage.delete(self._record_uri(record.unit))
        return whole

    def commit(
        self,
        unit: str,
        table: pa.Table,
        positions: npt.NDArray[np.int64],
        lines: Sequence[Line],
        counts: Mapping[str, Mapping[str, int]] | None = None,
    ) -> Record:
        """Write a unit's part, its refused records and its record; the record of the first commit wins.

        positions: of each document of the part, in the input; counts: see UnitData.counts.
        """
        ordered = {name: dict(sorted(found.items())) for name, found in (counts or {}).items()}
        record = replace(self._write(unit, table, positions, lines), **ordered)  # type: ignore[arg-type]
        failpoint("before_record")
        if not storage.put_if_absent(self._record_uri(unit), storage.to_json(record.to_json())):
            first = self.record(unit)
            if first is not None:
                return self._yield_to(first, record)
        failpoint("after_record")
        return record

    def replace(self, old: Record, table: pa.Table, positions: npt.NDArray[np.int64], lines: Sequence[Line]) -> Record:
        """Commit a unit anew, with fewer rows and more refused records; its old part goes."""
        written = self._write(old.unit, table, positions, lines)
        record = replace(written, nulled=old.nulled, given=old.given, later=old.later)
        failpoint("before_replace")
        storage.write_json(self._record_uri(old.unit), record.to_json())
        self._yield_to(record, old)
        return record

    def table(self, record: Record) -> pa.Table:
        """The part of a committed unit, its pages' checksums verified."""
        return read_part(uris.join(self.output, record.file))

    def columns(self, record: Record) -> list[str]:
        """The columns of a part."""
        fs, path = storage.filesystem(uris.join(self.output, record.file))
        with fs.open_input_file(path) as file:
            return list(pq.read_schema(file).names)

    def hashes(self, record: Record) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Hash of the id, and position in the input, of each document of a part. Raises StorageError when damaged."""
        uri = uris.join(self.output, _ids_file(record.file))
        words = np.frombuffer(storage.read_bytes(uri), WORDS).reshape(-1, 3)
        hashes = np.ascontiguousarray(words[:, :2])
        if digest_ids(hashes) != record.id_digest:
            raise StorageError(f"{uri} was damaged; delete units/{record.unit}.json and run again")
        return hashes, words[:, 2].astype(np.int64)

    def lines(self, unit: str) -> list[Line]:
        """The refused records of a unit."""
        try:
            text = storage.read_bytes(self._quarantine_uri(unit)).decode()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def _write(self, unit: str, table: pa.Table, positions: npt.NDArray[np.int64], lines: Sequence[Line]) -> Record:
        data = part_bytes(table)
        sha256 = storage.sha256_bytes(data)
        file = f"data/{unit}-{sha256[:8]}.parquet"
        storage.write_bytes(uris.join(self.output, file), data)
        failpoint("after_part")
        self._check_written(file, data)
        hashes = hash_ids(document_ids(table))
        words = np.column_stack([hashes, positions.astype(WORDS)])
        storage.write_bytes(uris.join(self.output, _ids_file(file)), words.tobytes())
        return record_of(unit, file, table, data, lines, self._write_lines(unit, lines))

    def _write_lines(self, unit: str, lines: Sequence[Line]) -> str | None:
        if not lines:
            return None
        ordered = sorted(lines, key=lambda line: (line["source"], line["position"], line["offset"] or 0))
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered).encode()
        storage.write_bytes(self._quarantine_uri(unit), data)
        return storage.sha256_bytes(data)

    def _check_written(self, file: str, data: bytes) -> None:
        """What storage gives back must be what was written: a full disk or a bad cable shows here, not in a search."""
        uri = uris.join(self.output, file)
        if storage.read_bytes(uri) != data:
            storage.delete(uri)
            raise StorageError(f"{uri} does not read back as it was written; check the disk and run again")

    def _yield_to(self, kept: Record, other: Record) -> Record:
        if other.file != kept.file:
            storage.delete(uris.join(self.output, other.file))
            storage.delete(uris.join(self.output, _ids_file(other.file)))
        return kept

    def _record_uri(self, unit: str) -> str:
        return uris.join(self.output, "units", f"{unit}.json")

    def _quarantine_uri(self, unit: str) -> str:
        return uris.join(self.output, "quarantine", f"{unit}.jsonl")


def record_of(
    unit: str, file: str, table: pa.Table, data: bytes, lines: Sequence[Line] = (), quarantine_sha256: str | None = None
) -> Record:
    """What there is to say of a part; data: its bytes."""
    hashes = hash_ids(document_ids(table))
    reasons = Counter(line["reason"] for line in lines)
    tokens_N, truncated_N = table[schema.N_TOKENS].to_numpy(), table[schema.TRUNCATED].to_numpy().astype(bool)
    return Record(
        unit=unit,
        file=file,
        rows=table.num_rows,
        documents=len(hashes),
        bytes=len(data),
        sha256=storage.sha256_bytes(data),
        quarantined=len(lines) - reasons[DUPLICATE],
        duplicates=reasons.pop(DUPLICATE, 0),
        truncated=int(np.count_nonzero(truncated_N)),
        tokens=int(tokens_N.sum()),
        lengths=counted(tokens_N),
        lengths_truncated=counted(tokens_N[truncated_N]),
        id_digest=digest_ids(hashes),
        reasons=dict(sorted(reasons.items())),
        quarantine_sha256=quarantine_sha256,
    )


def part_bytes(table: pa.Table) -> bytes:
    """A part as Parquet; the same table gives the same bytes.

    Settings by measurement: no dictionary and no statistics on vectors (as float16 3 × faster to write, 6 × to read),
    large pages, each with a CRC; text compressed, vectors not (they do not shrink). Vectors of bytes have a dictionary:
    Parquet knows no number of one byte, and would otherwise take four (measured: 4.0 and 1.0 bytes a number).
    """
    buffer = io.BytesIO()
    of_bytes = pa.types.is_integer(table.schema.field(schema.EMBEDDING).type.value_type)
    pq.write_table(
        table,
        buffer,
        row_group_size=ROW_GROUP,
        use_dictionary=[VECTORS] if of_bytes else False,
        column_encoding=None if of_bytes else {VECTORS: "PLAIN"},
        compression={name: "none" if name == schema.EMBEDDING else "zstd" for name in table.schema.names},
        write_statistics=[schema.ID],
        write_page_checksum=True,
        data_page_size=PAGE_BYTES,
        write_batch_size=WRITE_BATCH,
    )
    return buffer.getvalue()


def _is_whole(record: Record, sizes: Mapping[str, int]) -> bool:
    ids_bytes = record.documents * 3 * WORDS.itemsize
    return sizes.get(record.file) == record.bytes and sizes.get(_ids_file(record.file)) == ids_bytes


def _ids_file(file: str) -> str:
    return file.replace("data/", "ids/", 1).removesuffix(".parquet") + ".bin"
