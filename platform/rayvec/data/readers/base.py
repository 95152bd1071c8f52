"""What a reader of a format does, and what readers share. Knows no format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rayvec.data.files import Listing
from rayvec.data.layout import Layout
from rayvec.data.source_config import SourceConfig
from rayvec.data.units import Input, Unit, UnitData
from rayvec.errors import UserError

T = TypeVar("T")

#: A unit is never planned larger than this, however few records that is, so that a worker's memory is bounded.
UNIT_BYTES = 64 << 20
ALONE = UNIT_BYTES + 1
_THREADS = 16
_NAMED = 5
#: Of more files than this, so many are looked into for columns and types.
_SAMPLED = 256


@dataclass(frozen=True)
class Span:
    """A range of the input that becomes a unit; see units.Unit for what the numbers count."""

    files: tuple[Input, ...]
    start: int
    stop: int
    first: int
    rows: int
    #: Of a file of another kind than the source's: which.
    kind: str | None = None


class Reader(Protocol):
    """Reads one format. Holds no state: what it learns about the files is the layout."""

    def layout(self, config: SourceConfig, listing: Listing) -> Layout:
        """Look into the files and find the columns. Raises UserError before any work when something does not fit."""

    def spans(self, config: SourceConfig, listing: Listing, unit_rows: int) -> Iterable[Span]:
        """Cut the files, in order. Raises UserError for damaged files, unless they are to be quarantined."""

    def read(self, config: SourceConfig, listing: Listing, layout: Layout, unit: Unit) -> UnitData:
        """Read a unit."""


class BadFileError(Exception):
    """A file that is damaged or not of its kind: refused or quarantined, as the configuration says."""


def inspect(config: SourceConfig, files: Iterable[Input], look: Callable[[Input], T]) -> Iterator[tuple[Input, T]]:
    """Look into each file, many at a time; the results in order, without the bad files if they are quarantined.

    Raises UserError that names the bad files otherwise, or when no file is good.
    """

    def attempt(file: Input) -> T | BadFileError:
        try:
            return look(file)
        except BadFileError as error:
            return error

    files = list(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(attempt, files))
    bad = [f"{file.uri}: {result}" for file, result in zip(files, results, strict=True) if _is_bad(result)]
    if bad and (config.on_bad_input == "fail" or len(bad) == len(files)):
        more = f"; and {len(bad) - _NAMED} more files" if len(bad) > _NAMED else ""
        cure = (
            ""
            if len(bad) == len(files)
            else "; mend them, or quarantine them with --set source.on_bad_input=quarantine"
        )
        raise UserError(f"{'; '.join(bad[:_NAMED])}{more}{cure}")
    for file, result in zip(files, results, strict=True):
        if not isinstance(result, BadFileError):
            yield file, result


def sampled(files: Sequence[Input]) -> Sequence[Input]:
    """The files to look into for columns and types, spread over all of them."""
    return files if len(files) <= _SAMPLED else [files[len(files) * i // _SAMPLED] for i in range(_SAMPLED)]


def grouped(files: Iterable[tuple[Sequence[Span], int]], unit_rows: int) -> Iterator[Span]:
    """The spans of all files, in order; of small files that stand side by side one, so that they share a unit.

    files: of each its spans, and the bytes of its content; ALONE for one that is not to share.
    """
    group: list[Span] = []
    rows = size = 0
    for spans, bytes_ in files:
        small = len(spans) == 1 and spans[0].rows <= unit_rows and bytes_ <= UNIT_BYTES
        fits = small and rows + spans[0].rows <= unit_rows and size + bytes_ <= UNIT_BYTES
        if group and not (fits and spans[0].kind == group[0].kind):
            yield _together(group)
            group, rows, size = [], 0, 0
        if small:
            group.append(spans[0])
            rows, size = rows + spans[0].rows, size + bytes_
        else:
            yield from spans
    if group:
        yield _together(group)


def _together(group: list[Span]) -> Span:
    if len(group) == 1:
        return group[0]
    files = tuple(file for span in group for file in span.files)
    return Span(files, 0, 0, group[0].first, sum(span.rows for span in group), group[0].kind)


def _is_bad(result: object) -> bool:
    return isinstance(result, BadFileError)
