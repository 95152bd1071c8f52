"""Sources: a corpus in files, cut into units of work and read as Arrow tables of documents.

`open_source(config)` finds the files and their columns, and refuses what cannot be read before any work is done. A new
format is one file in `readers/` and one row in READERS. Knows no encoder, no Ray.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from rayvec import storage, uris
from rayvec.data.files import Listing, check_packing, check_unchanged, kind_of, list_files, newest
from rayvec.data.layout import Layout
from rayvec.data.readers.base import Reader, Span
from rayvec.data.readers.delimited import DelimitedReader
from rayvec.data.readers.documents import DocumentReader
from rayvec.data.readers.lines import JsonlReader, TextLinesReader
from rayvec.data.readers.parquet import ParquetReader
from rayvec.data.readers.saved import SavedReader, is_saved, list_saved
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import Input, Rejected, Unit, UnitData, unit_name
from rayvec.errors import UserError

__all__ = ["Input", "Rejected", "Source", "SourceConfig", "Unit", "UnitData", "list_source", "open_source"]

READERS: dict[str, Reader] = {
    "parquet": ParquetReader(),
    "jsonl": JsonlReader(),
    "csv": DelimitedReader(),
    "tsv": DelimitedReader(),
    "text": DocumentReader(),
    "hf": SavedReader(),
    "lines": TextLinesReader(),
}


@dataclass(frozen=True)
class Source:
    """An opened source. Plain data, so it can be sent to the workers that read its units."""

    config: SourceConfig
    listing: Listing
    layout: Layout

    @property
    def payload(self) -> list[str]:
        """The names of the columns carried beside id, title and text."""
        return [name for name, _ in self.layout.payload]

    @property
    def mixed(self) -> Mapping[str, str]:
        """Payload columns that are text because their values are of several types, and which types those are."""
        return dict(self.layout.mixed)

    @property
    def left(self) -> tuple[str, ...]:
        """The names of the columns that are not carried."""
        return self.layout.left

    @property
    def names_by_place(self) -> str | None:
        """The folder that file names in ids are relative to; None where no id is made of one."""
        config, id_ = self.config, self.layout.id
        by_name = id_ is None or config.missing_id == "make" or self._reader is READERS["text"]
        return self.listing.base if by_name and config.make_ids == "path" else None

    @property
    def _reader(self) -> Reader:
        return READERS["lines" if self.config.lines else self.config.kind]

    def inputs(self) -> list[Input]:
        """The files, in the order in which they are read."""
        return list(self.listing.files)

    def units(self, unit_rows: int) -> list[Unit]:
        """Cut the source into units of about `unit_rows` records; the same files give the same units.

        Fewer where records are large, more where a compressed file would need too many. Raises UserError when there is
        nothing to read, or a file is damaged and source.on_bad_input is "fail".
        """
        if unit_rows < 1:
            raise UserError(f"unit_rows = {unit_rows}: a unit holds at least 1 record; 4096 is usual")
        spans = self._reader.spans(self.config, self.listing, unit_rows)
        units = [self._unit(ordinal, span) for ordinal, span in enumerate(spans)]
        if not units:
            raise UserError(f"{self.config.where} holds no records; check source.path")
        return units

    def _unit(self, ordinal: int, span: Span) -> Unit:
        bytes_ = sum(file.bytes for file in span.files)
        covers = [[self.listing.name(file.uri), file.bytes] for file in span.files]
        several = len(span.files) > 1 or self._reader is READERS["text"]
        return Unit(
            name=unit_name(ordinal, covers, span.start, span.stop),
            kind=span.kind or self.config.kind,
            uri=span.files[0].uri,
            start=span.start,
            stop=span.stop,
            first=span.first,
            rows_estimate=span.rows,
            input_bytes=bytes_,
            modified=newest(list(span.files)),
            files=tuple(file.uri for file in span.files) if several else (),
        )

    def read(self, unit: Unit) -> UnitData:
        """Read one unit. Raises MismatchError when a file of it has changed since the plan."""
        check_unchanged(unit.files or (unit.uri,), unit.input_bytes, unit.modified)
        return self._reader.read(self.config, self.listing, self.layout, unit)


def open_source(config: SourceConfig, cache: str | None = None) -> Source:
    """Find the files and their columns. Raises UserError when something is missing or of the wrong format.

    `cache` is a folder or URI that every worker can read, in which pydocs are collected once.
    """
    if config.kind == "pydocs":
        assert cache is not None, "pydocs need a folder to be collected in"
        config = _collected(config, cache)
    if _is_dataset(config):
        config = config.replace(kind="hf")
    listing = list_source(config)
    if config.kind != "hf":
        check_packing(listing.files)
    if config.kind == "auto":
        kind = _common_kind(config.where, listing, "text" if config.lines else None)
        if config.lines and kind != "text":
            raise UserError(
                f"source.lines is for plain text, and {config.where} is {kind}; read its records with --set "
                "source.lines=false"
            )
        config = config.replace(kind=kind)
    reader = READERS["lines" if config.lines else config.kind]
    return Source(config, listing, reader.layout(config, listing))


def list_source(config: SourceConfig) -> Listing:
    """The files of a source that is not pydocs, as they are now. Raises UserError where there are none."""
    if _is_dataset(config):
        return list_saved(config.where, config.split)
    return list_files(config.path, None if config.kind == "auto" else config.kind)


def _is_dataset(config: SourceConfig) -> bool:
    one = config.path if isinstance(config.path, str) else ""
    return config.kind == "hf" or (config.kind == "auto" and bool(one) and is_saved(one))


def _common_kind(path: str, listing: Listing, otherwise: str | None) -> str:
    """The kind of all files; `otherwise` is that of those whose extension says none."""
    kinds = {file.uri: kind_of(file.uri) or otherwise for file in listing.files}
    unknown = [uri for uri, kind in kinds.items() if kind is None]
    if unknown:
        raise UserError(
            f"the extension of {unknown[0]} does not say what it is; name it with "
            "--set source.kind=parquet|jsonl|csv|tsv|text"
        )
    found = sorted({str(kind) for kind in kinds.values()})
    if len(found) > 1:
        raise UserError(
            f"{path} holds files of several kinds ({', '.join(found)}); choose one with --set source.kind=…, "
            "or a glob pattern such as --set 'source.path=FOLDER/*.jsonl'"
        )
    return found[0]


def _collected(config: SourceConfig, cache: str) -> SourceConfig:
    """Collect the documents of this Python environment to a Parquet file, unless it is there; then read that."""
    from rayvec.data import pydocs

    key = config.replace(path="", payload=()).digest()
    uri = uris.join(uris.absolute(cache), f"pydocs-{key}.parquet")
    if not storage.exists(uri):
        workers = min(8, os.cpu_count() or 1)
        storage.write_parquet(uri, pydocs.collect(config.packages or None, config.min_characters, workers))
    payload = config.payload or tuple(pydocs.PAYLOAD)
    return SourceConfig(kind="parquet", path=uri, payload=payload, on_bad_input=config.on_bad_input)
