"""Files whose records are lines: jsonl, and text with a document on each line. Blank lines are no records.

Units are byte ranges of the decompressed stream that begin and end at line starts, found by one fast pass at plan time;
that pass also gives the line numbers, and finds damaged compressed files before the work.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rayvec.data.files import Listing
from rayvec.data.readers.base import UNIT_BYTES, BadFileError, Span, inspect
from rayvec.data.records import Builder, Layout, RefusedError, infer_types, resolve_layout
from rayvec.data.source_config import SourceConfig
from rayvec.data.streams import DamagedError, Line, Scan, lines, scan
from rayvec.data.units import Input, Unit, UnitData
from rayvec.errors import UserError

#: How much of a file is looked at for its columns and their types.
_SAMPLE_LINES = 1000
_SAMPLE_BYTES = 4 << 20


class _LineReader:
    """Cuts at line starts and reads line by line; what a line means is left to `record`."""

    def record(self, data: bytes) -> Mapping[str, Any]:
        """The record of a line. Raises RefusedError."""
        raise NotImplementedError

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """See base.Reader."""
        del self
        scans = dict(inspect(config, listing.files, lambda file: _scan(config, file, unit_rows)))
        for file in listing.files:
            for cut in scans[file].cuts:
                yield Span((file,), cut.start, cut.stop, cut.first_line, cut.lines)

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """See base.Reader."""
        builder = Builder(layout, listing.name(unit.uri))
        number = unit.first - 1
        try:
            for line in lines(unit.uri, unit.start, unit.stop, config.max_record_bytes):
                number += 1
                self._add(builder, number, line)
        except DamagedError as error:
            builder.reject(number + 1, error.offset, "damaged", detail=f"{unit.uri}: {error}; nothing after it is read")
        return builder.finish()

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
    """One JSON object a line."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See base.Reader; columns and their types come from the first records of the first file that has any."""
        samples = [
            sample for _, sample in inspect(config, listing.files, lambda file: _json_sample(config, file)) if sample
        ]
        if not samples:
            raise UserError(f"{config.path} holds no records; check source.path")
        return resolve_layout(
            config.path,
            infer_types(samples[0]),
            id_column=config.id_column,
            title_column=config.title_column,
            text_columns=config.text_columns,
            payload=config.payload,
        )

    def record(self, data: bytes) -> Mapping[str, Any]:
        """See _LineReader."""
        return parse_json(data)


class TextLinesReader(_LineReader):
    """One document a line of plain text."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """See base.Reader."""
        check_all_text(config, listing)
        return Layout(None, None, ("text",))

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
        yield from itertools.islice(lines(file.uri, 0, _SAMPLE_BYTES, config.max_record_bytes), _SAMPLE_LINES)
    except DamagedError as error:
        if not error.offset:
            raise BadFileError(f"cannot be decompressed ({error})") from None


def check_all_text(config: SourceConfig, listing: Listing) -> None:
    """Raise UserError when files are not text, unless they are to be quarantined."""
    list(inspect(config, listing.files, lambda file: check_text(config, file)))


def check_text(config: SourceConfig, file: Input) -> None:
    """Raise BadFileError when a file is not UTF-8 text by its first lines: a binary file, or UTF-16."""
    for line in head(config, file):
        if line.data is not None and b"\0" in line.data and not _is_utf8(line.data):
            raise BadFileError("not a UTF-8 text file; convert it, or check source.path")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _scan(config: SourceConfig, file: Input, unit_rows: int) -> Scan:
    found = scan(file.uri, unit_rows, UNIT_BYTES)
    if found.damage is not None and config.on_bad_input == "fail":
        raise BadFileError(f"damaged after {found.damage.offset} bytes of its content ({found.damage})")
    return found


def _json_sample(config: SourceConfig, file: Input) -> list[dict[str, Any]]:
    """The first good records. Raises BadFileError when no line is a JSON object, or they stand in an array."""
    sample, fault, array = [], "", False
    for line in head(config, file):
        if line.data is None or not line.data.strip():
            continue
        try:
            sample.append(parse_json(line.data))
        except RefusedError as error:
            fault = fault or _explain(line.data, error)
            array = array or line.data.strip() == b"["
    if fault and (array or not sample):
        raise BadFileError(f"not JSON lines: {fault}")
    return sample


def _explain(data: bytes, error: RefusedError) -> str:
    if data.lstrip()[:1] == b"[":
        return "it begins with `[`, a JSON array; write one object a line, as `jq -c '.[]'` does"
    return f"line 1 is no JSON object ({error.detail}); write one object a line, or set source.kind"
