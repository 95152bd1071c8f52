"""Embeddings as they lie on disk: what a finished run published, read through its manifest and never by listing.

Knows the layout of the artifact, Parquet and checksums. Knows no encoder, no index, no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayvec import schema, storage, uris
from rayvec.data import vector_types
from rayvec.data.ids import Hashes, digest_ids, hash_ids, repeated_places
from rayvec.errors import UserError, VerificationError
from rayvec.failures import is_storage_fault, storage_errors
from rayvec.fingerprint import Fingerprint

FORMAT = "rayvec.embeddings/1"
CURRENT = "CURRENT"
#: How far from 1 the length of a normalised vector may be.
NORM_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "int8": 1e-3, "binary": 1e-3}

Part = dict[str, Any]


def manifest_uri(uri: str, version: int) -> str:
    """Where the manifest of a version lies."""
    return uris.join(uri, "manifests", f"v{version}.json")


@dataclass(frozen=True)
class EmbeddingsDataset:
    """One published version of an embeddings folder."""

    uri: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> EmbeddingsDataset:
        """Open the current version, or another. Raises UserError when nothing is published there."""
        uri = uris.absolute(uri)
        try:
            name = version or int(storage.read_bytes(uris.join(uri, CURRENT)).decode().strip().removeprefix("v"))
        except FileNotFoundError:
            raise UserError(f"{uri} holds no finished embeddings; make them with python -m jobs.embed") from None
        except ValueError:
            raise VerificationError(f"{uri}/{CURRENT} is damaged; it should name a version, as in v1") from None
        try:
            manifest = storage.read_json(manifest_uri(uri, name))
        except FileNotFoundError:
            if storage.exists(uris.join(uri, "versions", f"v{name}", "manifest.json")):
                raise UserError(f"{uri} holds an index, not embeddings; give the output of jobs.embed") from None
            raise UserError(f"{uri} has no version v{name}; it is named {CURRENT} or was asked for") from None
        if manifest.get("format") != FORMAT:
            raise VerificationError(f"{uri} is of format {manifest.get('format')!r}; this version reads {FORMAT!r}")
        return cls(uri, manifest)

    @property
    def version(self) -> int:
        """Its number."""
        return int(self.manifest["version"])

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder that made the vectors."""
        return Fingerprint.parse(self.manifest["fingerprint"])

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self.manifest["dim"])

    @property
    def normalize(self) -> bool:
        """Whether vectors were brought to length 1, by the encoder or after it."""
        return bool(self.manifest["normalize"])

    @property
    def count(self) -> int:
        """Rows in all parts."""
        return int(self.manifest["count"])

    @property
    def payload(self) -> list[str]:
        """Columns carried beside id, title and text."""
        return list(self.manifest["payload"])

    @property
    def parts(self) -> list[Part]:
        """The parts' entries, in the order of the input."""
        return list(self.manifest["parts"])

    @property
    def part_uris(self) -> list[str]:
        """The parts' files, in the order of the input."""
        return [uris.join(self.uri, part["file"]) for part in self.parts]

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """One table a part, in the order of the input; the checksum of every page read is verified."""
        for uri in self.part_uris:
            yield read_part(uri, columns)

    def verify(self, full: bool = True) -> dict[str, Any]:
        """Check every part against the manifest: size and checksum, and if `full` every row of it.

        Returns what was checked. Raises VerificationError (exit status 7) with the first fault found and their number.
        """
        faults = [fault for part in self.parts for fault in self._part_faults(part, full)]
        if full and not faults:
            faults = [*self._total_faults(), *self._repeated_ids()]
        if faults:
            more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
            raise VerificationError(f"{faults[0]}{more}")
        return {"output": self.uri, "version": self.version, "parts": len(self.parts), "rows": self.count, "faults": 0}

    def _part_faults(self, part: Part, full: bool) -> list[str]:
        uri = uris.join(self.uri, part["file"])
        try:
            storage.check_file(uri, bytes_=part["bytes"], sha256=part["sha256"])
            if part["quarantine_sha256"] is not None:
                self._check_quarantine(part)
            return list(self._row_faults(part, read_part(uri))) if full else []
        except VerificationError as error:
            return [str(error)]

    def _check_quarantine(self, part: Part) -> None:
        uri = uris.join(self.uri, "quarantine", f"{part['unit']}.jsonl")
        if storage.size(uri) < 0 or storage.sha256_file(uri) != part["quarantine_sha256"]:
            raise VerificationError(f"{uri} is missing or damaged; restore it or build it again")

    def _row_faults(self, part: Part, table: pa.Table) -> Iterator[str]:
        file = part["file"]
        yield from (f"{file}: {fault}" for fault in _window_faults(table))
        if table.num_rows != part["rows"]:
            yield f"{file} has {table.num_rows} rows where its manifest says {part['rows']}"
        if digest_ids(hash_ids(document_ids(table))) != part["id_digest"]:
            yield f"{file} holds other ids than its manifest says"
        if int(table[schema.N_TOKENS].to_numpy().sum()) != part["tokens"]:
            yield f"{file} holds another number of tokens than its manifest says"
        vectors_ND = vectors(table)
        if vectors_ND.shape[1] != self.dim:
            yield f"{file} has vectors of {vectors_ND.shape[1]} numbers where its manifest says {self.dim}"
        if not np.isfinite(vectors_ND).all():
            yield f"{file} holds vectors that are not finite"
        elif self.normalize and len(vectors_ND):
            off = float(np.abs(np.linalg.norm(vectors_ND, axis=1) - 1).max())
            if off > NORM_TOLERANCE[self.manifest["dtype"]]:
                yield f"{file} holds vectors whose length is off 1 by {off:.3g}"

    def _total_faults(self) -> Iterator[str]:
        if self.count != sum(part["rows"] for part in self.parts):
            yield f"the manifest's count {self.count} is not the sum of its parts"
        totals: Counter[str] = Counter()
        for part in self.parts:
            totals.update(
                {name: part[name] for name in ("rows", "documents", "quarantined", "duplicates", "truncated", "tokens")}
            )
        yield from (
            f"the manifest's total of {name} is not the sum of its parts"
            for name in totals
            if totals[name] != self.manifest["totals"][name]
        )

    def _repeated_ids(self) -> Iterator[str]:
        count = sum(len(later) for later, _ in repeated_places(self._hashes(), self.count))
        if count:
            yield f"{count} ids stand in more than one row"

    def _hashes(self) -> Iterator[Hashes]:
        for table in self.iter_tables([schema.ID]):
            yield hash_ids(table[schema.ID])


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part. Raises VerificationError when it is missing, or a page does not match its checksum."""
    fs, path = storage.filesystem(uri)
    try:
        with fs.open_input_file(path) as file:
            return _read(file, columns)
    except FileNotFoundError:
        raise VerificationError(f"{uri} is missing; restore it or build it again") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        if is_storage_fault(error):
            with storage_errors(uri, "reading"):
                raise
        detail = " ".join(str(error).split())
        raise VerificationError(f"{uri} cannot be read ({detail}); restore it or build it again") from None


def _read(file: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table:
    """Without the dataset layer of `pq.read_table`, which costs a tenth more for a part of usual size."""
    with pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True) as part:
        table = part.read(columns=columns, use_threads=False)
    return table if columns is None else table.select(list(columns))


def vectors(table: pa.Table) -> vector_types.Floats:
    """The vectors of a part as float32 [N, D], whatever they are stored as; no copy of float32 ones in one chunk."""
    scales = table[schema.SCALE_FIELD.name] if schema.SCALE_FIELD.name in table.schema.names else None
    return vector_types.to_floats(table[schema.EMBEDDING], scales)


def document_rows(table: pa.Table) -> np.ndarray:
    """The number of the document that each row of a part is of, from 0 in the order of the part, int64."""
    if schema.WINDOW not in table.schema.names:
        return np.arange(table.num_rows)
    return np.cumsum(table[schema.WINDOW].to_numpy() == 0) - 1


def document_ids(table: pa.Table) -> pa.ChunkedArray:
    """The id of each document of a part, in order: what a window's row names as its parent."""
    if schema.WINDOW not in table.schema.names:
        return table[schema.ID]
    return table[schema.PARENT_ID].filter(pc.equal(table[schema.WINDOW], 0))


def _window_faults(table: pa.Table) -> Iterator[str]:
    """What is wrong with a part's windows: of each document all of them must be there, in order, from its start on."""
    if schema.WINDOW not in table.schema.names or not table.num_rows:
        return
    parents, numbers = table[schema.PARENT_ID].to_pylist(), table[schema.WINDOW].to_numpy()
    start, end = table[schema.CHAR_START].to_numpy(), table[schema.CHAR_END].to_numpy()
    if table[schema.ID].to_pylist() != schema.window_ids(parents, numbers.tolist()):
        yield "ids of windows are not their documents' with their numbers"
    follows = numbers[1:] == numbers[:-1] + 1
    same = np.array([a == b for a, b in pairwise(parents)], bool)
    if numbers[0] != 0 or not ((numbers[1:] == 0) | (follows & same)).all():
        yield "a document's windows are not numbered 0, 1, 2, …"
    elif (start[numbers == 0] != 0).any() or (start[1:] > end[:-1])[follows].any():
        yield "a document's windows leave out some of its characters"
