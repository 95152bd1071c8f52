"""Streams: a file as UTF-8 bytes, as lines, and where it may be cut. Bounded memory, whatever the file holds.

Offsets count decompressed bytes of UTF-8 from 0. Knows bytes and line feeds. Knows no records, no columns.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from rayvec import storage
from rayvec.data.files import compression_of
from rayvec.failures import input_errors, is_storage_fault

CHUNK = 1 << 20
#: Compressed files are read in steps of this length from their start, so every reader meets damage at the same place;
#: what lies between the last whole step and the damage is lost.
STEP = 1 << 16
#: A compressed or recoded file is read from its start for each of its units: this many at most, so the cost stays
#: linear.
MAX_COMPRESSED_UNITS = 32
BOM = b"\xef\xbb\xbf"


class DamagedError(Exception):
    """The stream cannot be read on from `offset`: a truncated or corrupt compressed file."""

    def __init__(self, offset: int, cause: str) -> None:
        super().__init__(cause)
        self.offset = offset


class Line(NamedTuple):
    """A line without its line feed; `data` is None when it is longer than allowed."""

    offset: int
    size: int
    data: bytes | None


@dataclass(frozen=True)
class Cut:
    """A range [start, stop) of the stream that begins and ends at the starts of lines."""

    start: int
    stop: int
    first_line: int
    lines: int


@dataclass(frozen=True)
class Scan:
    """Where a file may be cut, and where and why it cannot be read further, if so."""

    cuts: list[Cut]
    damage: DamagedError | None = None


def chunks(uri: str, start: int = 0, encoding: str | None = None) -> Iterator[bytes]:
    """The content of a file from `start` on: decompressed, and as UTF-8. Raises DamagedError.

    encoding: what its bytes are; by default UTF-8, or what its byte order mark says. Bytes that are no text in it
    become some that are none in UTF-8.
    """
    fs, path = storage.filesystem(uri)
    codec = compression_of(uri)
    with input_errors(uri):
        if codec is None:
            with fs.open_input_file(path) as file:
                first = file.read(max(CHUNK, _MARK_BYTES) if start == 0 else _MARK_BYTES)
                found = encoding or _marked(first)
                if start and not found:
                    file.seek(start)
                    yield from iter(lambda: file.read(CHUNK), b"")
                else:
                    content = itertools.chain([first], iter(lambda: file.read(CHUNK), b""))
                    yield from _after(start, _as_utf8(content, found))
            return
        with fs.open_input_stream(path, compression=None) as raw, pa.CompressedInputStream(raw, codec) as stream:
            unpacked = _unpacked(stream)
            first = next(unpacked, b"")
            yield from _after(start, _as_utf8(itertools.chain([first], unpacked), encoding or _marked(first)))


def _unpacked(stream: pa.NativeFile) -> Iterator[bytes]:
    offset = 0
    while chunk := _read(stream, offset):
        yield chunk
        offset += len(chunk)


def _after(start: int, content: Iterable[bytes]) -> Iterator[bytes]:
    """The content from `start` on."""
    offset = 0
    for chunk in content:
        if chunk and offset + len(chunk) > start:
            yield chunk[max(0, start - offset) :]
        offset += len(chunk)


#: Byte order marks; that of UTF-32 begins with that of UTF-16. UTF-8's own is taken off the first line.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_MARK_BYTES = 4
_UNDECODABLE = "rayvec.undecodable"
codecs.register_error(_UNDECODABLE, lambda error: ("\udc80", error.end))  # type: ignore[attr-defined]


def _marked(first: bytes) -> str | None:
    return next((name for mark, name in _MARKS.items() if first.startswith(mark)), None)


def _as_utf8(content: Iterable[bytes], encoding: str | None) -> Iterator[bytes]:
    if encoding is None:
        yield from content
        return
    decoder = codecs.getincrementaldecoder(encoding)(_UNDECODABLE)
    for chunk in content:
        yield decoder.decode(chunk).encode(errors="surrogatepass")
    yield decoder.decode(b"", final=True).encode(errors="surrogatepass")


def is_read_from_start(uri: str, encoding: str | None = None) -> bool:
    """Whether reading a part of the file reads all that stands before it."""
    if compression_of(uri) or encoding:
        return True
    fs, path = storage.filesystem(uri)
    with input_errors(uri), fs.open_input_file(path) as file:
        return _marked(file.read(_MARK_BYTES)) is not None


def _read(stream: pa.NativeFile, offset: int) -> bytes:
    try:
        return stream.read(STEP)
    except OSError as error:
        if is_storage_fault(error):  # the file may be sound: it is not to be quarantined for a lost network
            raise
        raise DamagedError(offset, str(error)) from None


def lines(uri: str, start: int, stop: int | None, max_bytes: int, encoding: str | None = None) -> Iterator[Line]:
    """The lines that begin in [start, stop), the file's byte order mark taken off. Raises DamagedError.

    A line over `max_bytes` is given without its data, and is never held in memory.
    """
    offset, parts, held, too_long = start, list[bytes](), 0, False
    for chunk in chunks(uri, start, encoding):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            size = held + len(piece)
            data = b"".join([*parts, piece]) if size <= max_bytes and not too_long else None
            yield _line(offset, size, data)
            offset += size + 1
            parts, held, too_long = [], 0, False
            if stop is not None and offset >= stop:
                return
        held += len(rest)
        too_long = too_long or held > max_bytes
        parts = [] if too_long else [*parts, rest]
    if held:
        yield _line(offset, held, None if too_long else b"".join(parts))


#: Places of a file that `spread` looks at, and how many lines it takes at each, of lines that begin in so many bytes.
PLACES, LINES_AT_PLACE, BYTES_AT_PLACE = 32, 64, 1 << 18


def spread(uri: str, start: int, max_bytes: int, encoding: str | None = None) -> Iterator[bytes]:
    """Some lines from `start` on, from places spread over the rest of the file; the same file gives the same lines.

    A file that can be read from anywhere is read at those places alone, any other once from its start. Lines over
    `max_bytes`, and in files of the second kind those over BYTES_AT_PLACE, are passed over, as is what stands behind
    damage.
    """
    if is_read_from_start(uri, encoding):
        yield from _spread_over_stream(chunks(uri, start, encoding))
        return
    size = storage.size(uri)
    for place in range(PLACES):
        begin, end = (start + (size - start) * number // PLACES for number in (place, place + 1))
        # From the byte before: what is left of the line that holds it is no line, and is empty where one begins.
        found = lines(uri, max(begin - 1, 0), min(end, begin + BYTES_AT_PLACE), max_bytes)
        for line in itertools.islice(found, 1 if begin else 0, LINES_AT_PLACE + 1):
            if line.data is not None:
                yield line.data


def _spread_over_stream(content: Iterator[bytes]) -> list[bytes]:
    """Some lines of every n-th chunk; n doubles whenever there are twice as many places as are to be kept."""
    kept, step = list[list[bytes]](), 1
    with contextlib.suppress(DamagedError):
        for number, chunk in enumerate(content):
            if number % step:
                continue
            if len(kept) == 2 * PLACES:
                kept, step = kept[::2], step * 2
            kept.append(chunk[:BYTES_AT_PLACE].split(b"\n")[1 if number else 0 : -1])
    found = [line for place in kept for line in place]
    return found[:: -(-len(found) // (2 * PLACES * LINES_AT_PLACE)) or 1]


def _line(offset: int, size: int, data: bytes | None) -> Line:
    if offset == 0 and data is not None:
        data = data.removeprefix(BOM)
    return Line(offset, size, data)


#: The end of a stream, as the `stop` of its last cut.
END = 1 << 62


def scan(uri: str, unit_lines: int, unit_bytes: int, encoding: str | None = None) -> Scan:
    """Cut a file at line starts, by one fast pass over it: `unit_lines` lines a cut, or fewer that fill `unit_bytes`.

    A damaged file is cut up to the last whole line before the damage; the last cut's `stop` lies behind the damage, so
    that its reader meets it.
    """
    cutter = _Cutter(unit_lines, unit_bytes)
    damage = None
    try:
        for chunk in chunks(uri, 0, encoding):
            cutter.feed(chunk)
    except DamagedError as error:
        damage = error
    return Scan(affordable(cutter.finish(damage is not None), uri, encoding), damage)


class _Cutter:
    """Finds the cuts of a stream of chunks."""

    def __init__(self, unit_lines: int, unit_bytes: int) -> None:
        self.unit_lines, self.unit_bytes = unit_lines, unit_bytes
        self.cuts: list[Cut] = []
        self.start, self.first = 0, 0
        self.offset, self.lines, self.open = 0, 0, False

    def feed(self, chunk: bytes) -> None:
        starts = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == 10) + self.offset + 1
        self.offset += len(chunk)
        self.open = not chunk.endswith(b"\n")
        while len(starts):
            by_lines = self.first + self.unit_lines - self.lines - 1
            by_bytes = int(np.searchsorted(starts, self.start + self.unit_bytes))
            index = min(by_lines, by_bytes)
            if index >= len(starts):
                break
            self._cut(int(starts[index]), self.lines + index + 1)
            starts = starts[index + 1 :]
        self.lines += len(starts)

    def _cut(self, stop: int, lines: int) -> None:
        self.cuts.append(Cut(self.start, stop, self.first + 1, lines - self.first))
        self.start, self.first, self.lines = stop, lines, lines

    def finish(self, damaged: bool) -> list[Cut]:
        if self.offset > self.start or damaged:
            stop = self.offset + 1 if damaged else self.offset
            self.cuts.append(Cut(self.start, stop, self.first + 1, self.lines - self.first + self.open))
        return self.cuts


def affordable(cuts: list[Cut], uri: str, encoding: str | None) -> list[Cut]:
    """The cuts of a file, put together where each of many would read the file from its start."""
    if len(cuts) > MAX_COMPRESSED_UNITS and is_read_from_start(uri, encoding):
        return merge_cuts(cuts, MAX_COMPRESSED_UNITS)
    return cuts


def merge_cuts(cuts: list[Cut], most: int) -> list[Cut]:
    """Neighbouring cuts put together until there are no more than `most`."""
    step = math.ceil(len(cuts) / most) or 1
    groups = [cuts[i : i + step] for i in range(0, len(cuts), step)]
    return [Cut(g[0].start, g[-1].stop, g[0].first_line, sum(cut.lines for cut in g)) for g in groups]
