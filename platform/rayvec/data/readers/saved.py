"""Datasets that Hugging Face's `save_to_disk` wrote: Arrow streams, named in order by `state.json`.

A DatasetDict is a folder of them, named by `dataset_dict.json`. Read through pyarrow alone, mapped into memory on a
local disk, so that a unit's reader skips what lies before it at no cost; from a bucket it reads that, up to the file's
size. Units end where record batches end wherever these are small enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from rayvec import storage, uris
from rayvec.data.files import Listing, stat
from rayvec.data.layout import Layout
from rayvec.data.readers.base import BadFileError, Span, inspect
from rayvec.data.readers.columns import UNREADABLE, Taker, common_layout, cut, raise_storage_fault
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import Input, Rejected, Unit, UnitData
from rayvec.errors import UserError

STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved(path: str) -> bool:
    """Whether a path is a folder that save_to_disk wrote."""
    return any(storage.size(uris.join(path, name)) >= 0 for name in (STATE, SPLITS))


def list_saved(path: str, split: str | None) -> Listing:
    """The files of a saved dataset in their order, or of one split of a saved DatasetDict. Raises UserError."""
    base = uris.absolute(path).rstrip("/")
    if not is_saved(base):
        raise UserError(f"{path} is no folder that save_to_disk wrote: it has no {STATE}; check source.path")
    folder = base
    if storage.size(uris.join(base, SPLITS)) >= 0:
        splits = storage.read_json(uris.join(base, SPLITS)).get("splits", [])
        chosen = split or (splits[0] if len(splits) == 1 else None)
        if chosen not in splits:
            raise UserError(
                f"source.split is {split!r}, and {path} has the splits {', '.join(splits)}; "
                "name one with --set source.split=…"
            )
        folder = uris.join(base, str(chosen))
    elif split is not None:
        raise UserError(f"{path} is one dataset and has no splits; leave out source.split = {split!r}")
    state = storage.read_json(uris.join(folder, STATE))
    if state.get("_indices_data_files"):
        raise UserError(
            f"{path} was saved by an old version, with its rows chosen by a list; load it and save it again"
        )
    files = tuple(stat(uris.join(folder, file["filename"])) for file in state["_data_files"])
    missing = [file.uri for file in files if file.bytes < 0]
    if missing:
        raise UserError(f"{missing[0]} is missing, and {STATE} names it; copy the whole folder again")
    return Listing(base, files)


class SavedReader:
    """See base.Reader. Positions are rows of a file, from 0."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See base.Reader."""
        return common_layout(config, listing, lambda file: _schema(file.uri))

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """Whole record batches up to `unit_rows` rows together; larger ones in equal parts. Walks through all files."""
        groups = dict(inspect(config, listing.files, _groups))
        for file in listing.files:
            if file not in groups:
                yield Span((file,), 0, 0, 0, 0)
                continue
            for start, stop in cut(groups[file], unit_rows):
                yield Span((file,), start, stop, start, stop - start)

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """The rows [start, stop). What has no end is refused as a whole: batches do not say where the next one is."""
        taker = Taker(layout, listing.name(unit.uri), config.max_record_bytes)
        parts = [UnitData(layout.schema.empty_table())]
        position = 0
        try:
            for batch in _batches(unit.uri):
                begin, end = max(unit.start, position), min(unit.stop, position + batch.num_rows)
                if begin < end:
                    parts.append(taker.take(pa.Table.from_batches([batch.slice(begin - position, end - begin)]), begin))
                position += batch.num_rows
                if position >= unit.stop > 0:
                    break
        except BadFileError as error:
            parts.append(UnitData(layout.schema.empty_table(), _lost(unit, position, str(error))))
        return UnitData.joined(parts)


def _lost(unit: Unit, position: int, detail: str) -> list[Rejected]:
    """The rows that cannot be read; one line for a file of which not even their number is known."""
    rows = range(max(unit.start, position), unit.stop) if unit.stop else range(1)
    return [Rejected(row, None, "damaged", None, None, detail) for row in rows]


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[pa.ipc.RecordBatchStreamReader]:
    try:
        if uris.is_local(uri):
            source = pa.memory_map(str(uris.local_path(uri)))
        else:
            fs, path = storage.filesystem(uri)
            source = fs.open_input_stream(path, compression=None)
        with source, pa.ipc.open_stream(source) as stream:
            yield stream
    except UNREADABLE as error:
        raise_storage_fault(uri, error)
        raise BadFileError(f"not a readable Arrow stream ({' '.join(str(error).split())})") from None


def _batches(uri: str) -> Iterator[pa.RecordBatch]:
    """The record batches of a file. Raises BadFileError where it cannot be read on."""
    with _opened(uri) as stream:
        for batch in stream:
            batch.validate()
            yield batch


def _schema(uri: str) -> pa.Schema:
    with _opened(uri) as stream:
        return stream.schema


def _groups(file: Input) -> list[tuple[int, int]]:
    """Rows and bytes of each batch."""
    return [(batch.num_rows, batch.nbytes) for batch in _batches(file.uri)]
