"""Files whose records are lines: jsonl, and text with a document on each line. Blank lines are no records.

Units are byte ranges of the decompressed stream that begin and end at line starts, found by one fast pass at plan time;
that pass also gives the line numbers, and finds damaged compressed files before the work. A file that is one JSON
document, an array of objects or an object over several lines, is read whole: its units are ranges of its items.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rayvec.data.files import Listing
from rayvec.data.json_types import Kinds, infer_types, kinds_of, mixtures
from rayvec.data.layout import Layout, named_columns, resolve_layout
from rayvec.data.readers.base import ALONE, UNIT_BYTES, BadFileError, Span, grouped, inspect, sampled
from rayvec.data.records import Builder, RefusedError
from rayvec.data.source_config import SourceConfig
from rayvec.data.streams import BOM, MAX_COMPRESSED_UNITS, DamagedError, Line, chunks, lines, scan, spread
from rayvec.data.units import Input, Piece, Unit, UnitData
from rayvec.errors import UserError

#: How much of a file's beginning is looked at for its columns and their types; of the rest see streams.spread.
_SAMPLE_LINES = 1000
_SAMPLE_BYTES = 4 << 20
#: A JSON document is held in memory; larger ones are refused.
_DOCUMENT_BYTES = 256 << 20
#: The kind of the spans of a JSON document.
_DOCUMENT = "json"
_ARRAY = re.compile(rb"\s*\[\s*(\{|\]|\Z)")


class _LineReader(ABC):
    """Cuts at line starts and reads line by line; what a line means is left to `record`."""

    @abstractmethod
    def record(self, data: bytes) -> Mapping[str, Any]:
        """The record of a line. Raises RefusedError."""

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """See base.Reader."""
        cuts = dict(inspect(config, listing.files, lambda file: self.cut(config, file, unit_rows)))
        return grouped((cuts.get(file) or _bad(file) for file in listing.files), unit_rows)

    def cut(self, config: SourceConfig, file: Input, unit_rows: int) -> tuple[list[Span], int]:
        """The spans of a file, and the bytes of its content. Raises BadFileError."""
        found = scan(file.uri, unit_rows, UNIT_BYTES, config.encoding)
        if found.damage is not None and config.on_bad_input == "fail":
            raise BadFileError(f"damaged after {found.damage.offset} bytes of its content ({found.damage})")
        spans = [Span((file,), cut.start, cut.stop, cut.first_line, cut.lines) for cut in found.cuts]
        return spans, ALONE if found.damage is not None or not spans else spans[-1].stop

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """See base.Reader."""
        builder = Builder(layout)
        for piece in unit.pieces():
            builder.begin(listing.name(piece.uri), piece.base)
            if unit.kind == _DOCUMENT:
                _read_items(config, builder, piece)
            else:
                self._read_lines(config, builder, piece)
        return builder.finish()

    def _read_lines(self, config: SourceConfig, builder: Builder, piece: Piece) -> None:
        number = piece.first - 1
        try:
            for line in lines(piece.uri, piece.start, piece.stop, config.max_record_bytes, config.encoding):
                number += 1
                self._add(builder, number, line)
        except DamagedError as error:
            detail = f"{piece.uri}: {error}; nothing after it is read"
            builder.reject(number + 1, error.offset, "damaged", detail=detail)

    def _add(self, builder: Builder, number: int, line: Line) -> None:
        if line.data is None:
            builder.reject(number, line.offset, "record_too_large", detail=f"{line.size} bytes")
            return
        if not line.data or line.data.isspace():
            return
        try:
            builder.add(number, line.offset, self.record(line.data))
        except RefusedError as error:
            builder.reject(number, line.offset, error.reason, detail=error.detail)


class JsonlReader(_LineReader):
    """One JSON object a line, or files that are one JSON document each."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See base.Reader; columns and their types come from the first records of each file, and some of the others."""
        files = sampled(listing.files)
        found = [(file, s) for file, s in inspect(config, files, lambda f: _json_sample(config, f)) if s.kinds]
        if not found:
            raise UserError(f"{config.where} holds no records; check source.path")
        seen: Kinds = {}
        for _, sample in found:
            for name, types in sample.kinds.items():
                seen.setdefault(name, set()).update(types)
        if isinstance(config.payload, tuple) and not (files is listing.files and all(s.is_whole for _, s in found)):
            seen = {**{name: set() for name in config.payload}, **seen}  # records after the samples may have it
        layout = resolve_layout(config.where, infer_types(seen), config, mixtures(seen))
        for file, sample in found:
            check_columns(config, file.uri, sample.kinds, layout)
        return layout

    def cut(self, config: SourceConfig, file: Input, unit_rows: int) -> tuple[list[Span], int]:
        """See _LineReader."""
        if not _is_document(config, file):
            return super().cut(config, file, unit_rows)
        items, size = _items(config, file.uri)
        parts = min(-(-len(items) // unit_rows), MAX_COMPRESSED_UNITS)  # each reads the file again
        ends = [len(items) * part // parts for part in range(parts + 1)]
        spans = [Span((file,), a, b, a + 1, b - a, _DOCUMENT) for a, b in itertools.pairwise(ends)]
        return spans, size

    def record(self, data: bytes) -> Mapping[str, Any]:
        """See _LineReader."""
        return parse_json(data)


def check_columns(config: SourceConfig, where: str, columns: Iterable[str], layout: Layout) -> None:
    """Raise UserError for a file that has no text, where others do, unless its records are to be quarantined."""
    if config.on_bad_input == "fail" and not set(columns) & set(layout.text):
        raise UserError(
            f"{where} has no column {layout.text[0]!r}, which other files have; name all text columns with --set "
            "source.text_columns=[…], or quarantine its records with --set source.on_bad_input=quarantine"
        )


class TextLinesReader(_LineReader):
    """One document a line of plain text."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See base.Reader."""
        check_all_text(config, listing)
        return Layout(None, None, ("text",), make_ids=config.make_ids)

    def record(self, data: bytes) -> Mapping[str, Any]:
        """See _LineReader."""
        try:
            return {"text": data.decode().rstrip("\r")}
        except UnicodeDecodeError as error:
            raise RefusedError("invalid_utf8", str(error)) from None


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises RefusedError."""
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise RefusedError("invalid_utf8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise RefusedError("invalid_json", f"the line is a {type(value).__name__}, not an object")
    return value


def head(config: SourceConfig, file: Input) -> Iterator[Line]:
    """The first lines of a file. Raises BadFileError when its compression is damaged from the start."""
    try:
        found = lines(file.uri, 0, _SAMPLE_BYTES, config.max_record_bytes, config.encoding)
        yield from itertools.islice(found, _SAMPLE_LINES)
    except DamagedError as error:
        if not error.offset:
            raise BadFileError(f"cannot be decompressed ({error})") from None


def check_all_text(config: SourceConfig, listing: Listing) -> None:
    """Raise UserError when files are not text, unless they are to be quarantined."""
    list(inspect(config, sampled(listing.files), lambda file: check_text(config, file)))


def check_text(config: SourceConfig, file: Input) -> None:
    """Raise BadFileError when a file is not text by its first lines."""
    for line in head(config, file):
        if line.data is not None and b"\0" in line.data and not _is_utf8(line.data):
            raise BadFileError("not a UTF-8 text file; check source.path, or set source.encoding")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Sample(NamedTuple):
    kinds: Kinds
    #: Whether it is all that the file holds.
    is_whole: bool


def _json_sample(config: SourceConfig, file: Input) -> _Sample:
    """The columns of the first good records. Raises BadFileError when no line is a JSON object."""
    paths = [name for name in named_columns(config) if "." in name]
    if _is_document(config, file):
        items, _ = _items(config, file.uri)
        return _Sample(kinds_of((item for item in items if isinstance(item, dict)), paths), True)
    sample, fault, left, end = [], "", _SAMPLE_LINES, 0
    for line in head(config, file):
        end = line.offset + line.size + 1
        left = left - 1 if end <= _SAMPLE_BYTES else 0
        if line.data is None or not line.data.strip():
            continue
        try:
            sample.append(parse_json(line.data))
        except RefusedError as error:
            fault = fault or f"line 1 is no JSON object ({error.detail}); write one object a line, or set source.kind"
    if fault and not sample:
        raise BadFileError(f"not JSON lines: {fault}")
    is_whole = left > 0
    further = () if is_whole or not config.payload else _spread_records(config, file, end)  # else no types are needed
    return _Sample(kinds_of(itertools.chain(sample, further), paths), is_whole)


def _spread_records(config: SourceConfig, file: Input, start: int) -> Iterator[dict[str, Any]]:
    """Some of the good records behind the first ones, so that what begins later is met too."""
    for data in spread(file.uri, start, config.max_record_bytes, config.encoding):
        with contextlib.suppress(RefusedError):
            yield parse_json(data)


def _is_document(config: SourceConfig, file: Input) -> bool:
    """Whether a file is one JSON document: an array of objects, or an object that goes on after its first line."""
    try:
        begin = next(chunks(file.uri, 0, config.encoding), b"").removeprefix(BOM)
    except DamagedError:
        return False
    if _ARRAY.match(begin):
        return True
    line = begin.lstrip().partition(b"\n")[0]
    if not line.startswith(b"{") or len(line) == len(begin.lstrip()):
        return False
    try:
        parse_json(line)
    except RefusedError:
        return _is_whole(config, file.uri)  # else it is a broken record before good ones
    return False


def _is_whole(config: SourceConfig, uri: str) -> bool:
    try:
        _items(config, uri)
    except BadFileError:
        return False
    return True


def _items(config: SourceConfig, uri: str) -> tuple[list[Any], int]:
    """The items of a JSON array, or the one object that there is, and the bytes of the file. Raises BadFileError."""
    parts, size = list[bytes](), 0
    try:
        for chunk in chunks(uri, 0, config.encoding):
            parts.append(chunk)
            size += len(chunk)
            if size > _DOCUMENT_BYTES:
                raise BadFileError(
                    f"a JSON array of more than {_DOCUMENT_BYTES >> 20} MB is not read whole; write one object a "
                    "line, as `jq -c '.[]'` does"
                )
        value = json.loads(b"".join(parts).removeprefix(BOM))
    except DamagedError as error:
        raise BadFileError(f"cannot be decompressed ({error})") from None
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"not JSON: neither an object a line nor one array of objects ({error})") from None
    return value if isinstance(value, list) else [value], size


def _bad(file: Input) -> tuple[list[Span], int]:
    """The unit of a file that is to be quarantined as a whole."""
    return [Span((file,), 0, 0, 1, 0, _DOCUMENT)], ALONE


def _read_items(config: SourceConfig, builder: Builder, piece: Piece) -> None:
    try:
        items, _ = _items(config, piece.uri)
    except BadFileError as error:
        builder.reject(piece.first, 0, "damaged", detail=f"{piece.uri}: {error}")
        return
    for position, item in enumerate(items[piece.start : piece.stop], piece.first):
        if isinstance(item, dict):
            builder.add(position, 0, item)
        else:
            builder.reject(position, 0, "invalid_json", detail=f"the item is a {type(item).__name__}, not an object")
