"""Pairs as people hold them: in jsonl, csv or Parquet, their negatives beside them, or made of docstrings.

The positive is a text or the id of a document. Files are found and unpacked as those of a corpus are, on disks and in
buckets. Knows texts and ids. Knows no tokenizer, no model, no index.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from rayvec import storage
from rayvec.config import Config
from rayvec.data.files import Listing, kind_of, list_files
from rayvec.data.layout import TEXT_NAMES
from rayvec.data.pairs import docstring_pairs
from rayvec.data.readers.columns import UNREADABLE, raise_storage_fault
from rayvec.data.readers.delimited import rows
from rayvec.data.readers.lines import parse_json
from rayvec.data.records import RefusedError
from rayvec.data.source_config import SourceConfig
from rayvec.data.sources import open_source
from rayvec.data.streams import DamagedError, lines
from rayvec.errors import UserError

PYDOCS = "pydocs"
UNIT_ROWS = 4096
#: The columns that are looked for when none is named; the first that is there is taken.
NAMES = {
    "query": ("query", "anchor"),
    "positive": ("positive", "pos"),
    "negative": ("negative", "neg"),
    "positive_id": ("positive_id",),
}
#: Columns of one negative each, as sentence-transformers names them.
_NUMBERED = re.compile(r"(negative|neg)_[0-9]+")
#: A record, or why there is none.
Record = Mapping[str, Any] | str


class PairColumns(Config):
    """Which column of the files is what; the usual names where none is given."""

    #: Else `query` or `anchor`.
    query: str | None = None
    #: A text, or a list of texts of which each makes a pair. Else `positive` or `pos`.
    positive: str | None = None
    #: A text or a list of texts; several columns of them too. Else `negative` or `neg`, or all of `negative_1`, …
    negative: str | tuple[str, ...] | None = None
    #: Mining: the id of a document that is the positive. Else `positive_id`.
    positive_id: str | None = None

    def of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a record by what they are; None for what it lacks."""
        named = {key: _names(getattr(self, key)) or usual for key, usual in NAMES.items()}
        found = {key: next((record[name] for name in names if name in record), None) for key, names in named.items()}
        several = self.negative if isinstance(self.negative, tuple) else ()
        if not (self.negative or found["negative"]):
            several = tuple(name for name in record if _NUMBERED.fullmatch(name))
        if several:
            found["negative"] = [text for name in several for text in _listed(record.get(name))]
        return found


def _names(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


class PairLine(NamedTuple):
    """A query and what answers it: a text, the id of a document, or both. place: where it stands, for messages."""

    place: str
    query: str
    positive: str | None
    positive_id: str | None
    negatives: tuple[str, ...] = ()


def _raise(error: UserError) -> None:
    raise error


def read_pairs(
    path: str, cache: str, columns: PairColumns | None = None, refuse: Callable[[UserError], None] = _raise
) -> Iterator[PairLine]:
    """The pairs of a file, a folder or a glob of jsonl, csv, tsv or Parquet, compressed or not; or of "pydocs".

    A Parquet file of documents (it has a text column, and none of queries) stands for docstrings: the first paragraph
    asks and the rest answers; held-out documents are left out. `cache`: the folder that pydocs are collected in.
    Raises UserError when nothing is there; a record that is no pair goes to `refuse`, by its place and what it lacks.
    """
    columns = columns or PairColumns()
    if path == PYDOCS or _holds_documents(path, columns):
        source = open_source(SourceConfig(kind=PYDOCS) if path == PYDOCS else SourceConfig(path=path), cache)
        for unit in source.units(UNIT_ROWS):
            for pair in docstring_pairs(source.read(unit).table, held_out=False):
                yield PairLine(pair.id, pair.query, pair.positive, pair.id)
        return
    for uri in (file.uri for file in list_pairs(path).files):
        try:
            for number, record in READERS[str(kind_of(uri))](uri):
                yield from _pairs_of(record, columns, f"{uri}:{number}", refuse)
        except DamagedError as error:
            told = f"{uri} is damaged after {error.offset} bytes of its content ({error}); copy it again"
            raise UserError(told) from None


def _pairs_of(
    record: Record, columns: PairColumns, place: str, refuse: Callable[[UserError], None]
) -> Sequence[PairLine]:
    try:
        return _pairs(record, columns, place)
    except (ValueError, TypeError, AttributeError) as error:
        refuse(
            UserError(
                f"{place} is no pair ({error}); a pair has query, and positive (a text) or, for jobs.mine, "
                "positive_id; name other columns with columns={query: …}"
            )
        )
        return ()


def list_pairs(path: str) -> Listing:
    """The files of a path that is not "pydocs", as they are now. Raises UserError where there are none."""
    try:
        found = list_files(path)
    except UserError:
        found = Listing("", ())
    alone = len(found.files) == 1
    # In a folder: beside the pairs that jobs.mine made lie its report and a sample of them.
    known = [file for file in found.files if kind_of(file.uri) in READERS and (alone or not file.uri.endswith(".json"))]
    if not known:
        raise UserError(f"no pairs at {path}; give a jsonl, csv or Parquet file, a folder of them or a glob")
    return Listing(found.base, tuple(known))


def _pairs(record: Record, columns: PairColumns, place: str) -> list[PairLine]:
    """The pairs of a record: one, or one for each of its positives. Raises ValueError, TypeError or AttributeError."""
    if isinstance(record, str):
        raise ValueError(record)
    found = columns.of(record)
    query, id_ = found["query"], found["positive_id"]
    id_ = str(id_) if type(id_) is int else id_  # as documents' ids are read
    positives, negatives = _texts(found["positive"]), _texts(found["negative"])
    for text in (query, id_, *positives, *negatives):
        if text is not None:
            text.encode()  # no number, and no half of a surrogate pair, which is no text
    if not (query and query.strip()) or not (positives or id_):
        lacking = "query" if not (query and query.strip()) else "positive"
        raise ValueError(f"it lacks {lacking}; its columns are {', '.join(record)}")
    return [PairLine(place, query, positive, id_ or None, tuple(negatives)) for positive in positives or [None]]


def _texts(value: Any) -> list[Any]:
    """A text, a list of them or nothing as a list, without blank ones."""
    return [text for text in _listed(value) if text is not None and text.strip()]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _jsonl(uri: str) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(lines(uri, 0, None, SourceConfig().max_record_bytes), 1):
        if line.data is None:
            yield number, f"{line.size} bytes are too many"
        elif line.data.strip():
            try:
                yield number, parse_json(line.data)
            except RefusedError as error:
                yield number, error.detail


def _delimited(uri: str) -> Iterator[tuple[int, Record]]:
    config = SourceConfig.parse({"kind": kind_of(uri)})
    header: list[str] | None = None
    for row in rows(config, lines(uri, 0, None, config.max_record_bytes), 1):
        if header is None:
            header = row.fields
        elif row.reason or len(row.fields) != len(header):
            yield row.line, row.detail or row.reason or f"{len(row.fields)} fields, and {len(header)} columns"
        else:
            yield row.line, dict(zip(header, row.fields, strict=True))


def _parquet(uri: str) -> Iterator[tuple[int, Record]]:
    with _opened(uri) as file:
        yield from enumerate((record for batch in file.iter_batches(1024) for record in batch.to_pylist()), 1)


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    fs, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(fs.open_input_file(path)) as file:
            yield file
    except UNREADABLE as error:
        raise_storage_fault(uri, error)
        raise UserError(f"{uri} is no readable Parquet file ({' '.join(str(error).split())})") from None


def _holds_documents(path: str, columns: PairColumns) -> bool:
    if not path.endswith(".parquet"):
        return False
    with _opened(list_pairs(path).files[0].uri) as file:
        names = file.schema_arrow.names
    return columns.of(dict.fromkeys(names, True))["query"] is None and bool({*names} & {*TEXT_NAMES})


READERS: dict[str, Callable[[str], Iterator[tuple[int, Record]]]] = {
    "jsonl": _jsonl,
    "csv": _delimited,
    "tsv": _delimited,
    "parquet": _parquet,
}
