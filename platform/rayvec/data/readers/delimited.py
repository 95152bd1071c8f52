"""csv and tsv. Fields in quotes may hold separators and line feeds, so files are cut where records begin.

A quote that is never closed costs its own line only: reading goes on at the next one. Values are text; no types are
guessed.
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from rayvec.data.files import Listing
from rayvec.data.layout import Layout, resolve_layout
from rayvec.data.readers.base import ALONE, UNIT_BYTES, BadFileError, Span, grouped, inspect, sampled
from rayvec.data.readers.lines import check_columns, check_text, head
from rayvec.data.records import Builder
from rayvec.data.source_config import SourceConfig
from rayvec.data.streams import END, Cut, DamagedError, Line, affordable, lines
from rayvec.data.units import Input, Piece, Unit, UnitData
from rayvec.errors import UserError

_SEPARATORS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True)
class Row:
    """A record: where it begins, and its fields; or the reason why it has none."""

    line: int
    offset: int
    fields: list[str]
    reason: str | None = None
    detail: str = ""


class DelimitedReader:
    """See base.Reader."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """The columns of all headers, in whatever order; a file need not have every column."""
        files = sampled(listing.files)
        headers = [(file, header) for file, header in inspect(config, files, _checked_header(config)) if header]
        if not headers:
            raise UserError(f"{config.where} holds no records; check source.path")
        columns = dict.fromkeys((name for _, header in headers for name in header), pa.string())
        _check_separator(config, headers[0][0].uri, list(columns))
        layout = resolve_layout(headers[0][0].uri if len(headers) == 1 else config.where, columns, config)
        for file, header in headers:
            check_columns(config, file.uri, header, layout)
        return layout

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """See base.Reader. Reads all files once, one record after the other."""
        cuts = dict(inspect(config, listing.files, lambda file: _cut(config, file, unit_rows)))
        return grouped((cuts[file] for file in listing.files), unit_rows)

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """See base.Reader."""
        builder = Builder(layout)
        for piece in unit.pieces():
            builder.begin(listing.name(piece.uri), piece.base)
            _read(config, builder, piece)
        return builder.finish()


def _check_separator(config: SourceConfig, where: str, columns: list[str]) -> None:
    """Raise UserError when all of a header is one name that holds what may be the separator."""
    sign = next((sign for sign in ";\t|," if sign in columns[0]), None)
    if len(columns) == 1 and sign and not config.column_names:
        raise UserError(
            f"{where} has but one column, {columns[0]!r}; say what its fields are parted by with "
            f"--set source.delimiter={sign!r}"
        )


def _read(config: SourceConfig, builder: Builder, piece: Piece) -> None:
    last = piece.first - 1
    try:
        header = _header(config, piece.uri)
        if piece.stop is None:
            found = _data_rows(config, piece.uri)
        else:
            found = rows(config, _lines(config, piece.uri, piece.start, piece.stop), piece.first)
        for row in found:
            last = row.line
            _add(builder, header, row)
    except DamagedError as error:
        builder.reject(last + 1, error.offset, "damaged", detail=f"{piece.uri}: {error}; nothing after it is read")


def _lines(config: SourceConfig, uri: str, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    return lines(uri, start, stop, config.max_record_bytes, config.encoding)


def _add(builder: Builder, header: list[str], row: Row) -> None:
    if row.reason is not None:
        builder.reject(row.line, row.offset, row.reason, detail=row.detail)
    elif len(row.fields) != len(header):
        detail = f"{len(row.fields)} fields where there are {len(header)} columns"
        builder.reject(row.line, row.offset, "invalid_csv", detail=detail)
    else:
        builder.add(row.line, row.offset, dict(zip(header, row.fields, strict=True)))


def _header(config: SourceConfig, uri: str) -> list[str]:
    """The names of the columns; empty when the file is."""
    if config.column_names:
        return list(config.column_names)
    first = next(rows(config, _lines(config, uri), 1), None)
    return [] if first is None else _names(first)


def _names(header: Row) -> list[str]:
    """The names in a header; a column without one is called as pandas, which writes such, calls it."""
    return [name or f"Unnamed: {number}" for number, name in enumerate(header.fields)]


def _checked_header(config: SourceConfig) -> Callable[[Input], list[str]]:
    def look(file: Input) -> list[str]:
        check_text(config, file)
        first = next(rows(config, head(config, file), 1), None)
        if first is None:
            return []
        if first.reason is not None:
            raise BadFileError(f"its header cannot be read: {first.detail or first.reason}")
        header = list(config.column_names) or _names(first)
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise BadFileError(f"its header names {', '.join(map(repr, repeated))} more than once")
        return header

    return look


def _cut(config: SourceConfig, file: Input, unit_rows: int) -> tuple[list[Span], int]:
    """The spans of a file, and about how many bytes it holds."""
    cuts: list[Cut] = []
    first: Row | None = None
    count, size, damage = 0, 0, None
    try:
        for row in _data_rows(config, file.uri):
            size = row.offset
            if first is None:
                first, count = row, 0
            elif count >= unit_rows or row.offset - first.offset >= UNIT_BYTES:
                cuts.append(Cut(first.offset, row.offset, first.line, count))
                first, count = row, 0
            count += 1
    except DamagedError as error:
        damage = error
        if config.on_bad_input == "fail":
            raise BadFileError(f"damaged after {error.offset} bytes of its content ({error})") from None
    if first is not None or damage is not None:
        start, line = (first.offset, first.line) if first is not None else (0, 1)
        end = END if damage is None else damage.offset + 1
        cuts.append(Cut(start, end, line, count))
    cuts = affordable(cuts, file.uri, config.encoding)
    spans = [Span((file,), cut.start, cut.stop, cut.first_line, cut.lines) for cut in cuts]
    return spans, size if damage is None else ALONE


def _data_rows(config: SourceConfig, uri: str) -> Iterator[Row]:
    found = rows(config, _lines(config, uri), 1)
    return found if config.column_names else itertools.islice(found, 1, None)


def rows(config: SourceConfig, source: Iterator[Line], first_line: int) -> Iterator[Row]:
    """The records of these lines; blank lines are none. Raises DamagedError."""
    return _Parser(config, source, first_line).rows()


class _TooLargeError(Exception):
    pass


class _Parser:
    """Hands lines to csv.reader and watches how many it takes for a record, so that any line can be taken back."""

    def __init__(self, config: SourceConfig, source: Iterator[Line], first_line: int) -> None:
        self.max_bytes = config.max_record_bytes
        self.options = {
            "delimiter": config.delimiter or _SEPARATORS.get(config.kind, ","),
            "quoting": csv.QUOTE_MINIMAL if config.quotes else csv.QUOTE_NONE,
        }
        self.source = ((number, line) for number, line in enumerate(source, first_line))
        self.waiting: deque[tuple[int, Line]] = deque()
        self.taken: list[tuple[int, Line]] = []
        self.taken_bytes = 0
        self.ended = False
        # Process-wide, and far too small as it comes; the lines handed over are bounded here.
        csv.field_size_limit(max(csv.field_size_limit(), self.max_bytes))

    def rows(self) -> Iterator[Row]:
        reader = csv.reader(self, **self.options)  # type: ignore[arg-type]
        while True:
            self.taken, self.taken_bytes, self.ended = [], 0, False
            fault = None
            try:
                fields = next(reader)
            except StopIteration:
                return
            except _TooLargeError:
                fault = ("record_too_large", f"more than {self.max_bytes} bytes, or a quote that is never closed")
            except csv.Error as error:
                fault = ("invalid_csv", str(error))
            number, line = self.taken[0]
            if fault is None and self.ended:
                fault = ("invalid_csv", "a quote is never closed")
            if fault is not None:
                self.waiting.extendleft(reversed(self.taken[1:]))
                yield Row(number, line.offset, [], *fault)
                reader = csv.reader(self, **self.options)  # type: ignore[arg-type]
            elif fields:
                yield Row(number, line.offset, fields)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = self.waiting.popleft() if self.waiting else next(self.source, None)
        if item is None:
            self.ended = bool(self.taken)
            raise StopIteration
        self.taken.append(item)
        self.taken_bytes += item[1].size
        if item[1].data is None or self.taken_bytes > self.max_bytes:
            raise _TooLargeError
        # Bytes that are not UTF-8 become lone surrogates, which the record's check refuses.
        return item[1].data.decode(errors="surrogateescape") + "\n"
