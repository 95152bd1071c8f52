"""Units of work: what a source is cut into, what reading one gives, and why a record may be refused.

A unit is a range of the input fixed at plan time; it is what is worked, retried, committed and resumed. Knows no file
format, no encoder, no Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

#: Why a record is refused: a closed table, so that quarantine files can be counted by reason.
REASONS = {
    "invalid_json": "the line, or the item of the array, is not one JSON object",
    "invalid_utf8": "the bytes, or an escape in them, are not valid text; see source.encoding",
    "invalid_csv": "the record has an unclosed quote, or not as many fields as the header",
    "missing_text": "no text column is there, or all are null",
    "empty_text": "the text holds white space or invisible characters only",
    "bad_id": "the id is null, empty, over 512 bytes, or neither a string nor a whole number; see source.missing_id",
    "bad_value": "the text or the title is neither a string nor a number",
    "record_too_large": "the record is larger than source.max_record_bytes",
    "damaged": "the file is damaged at this place",
}


@dataclass(frozen=True)
class Input:
    """A file of the source as it was when the source was opened; a resumed run compares these."""

    uri: str
    bytes: int
    modified: int | None  # nanoseconds since the epoch; None where the storage does not say

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


#: In a unit of several whole files, the file's number stands above a record's place in it.
_FILE_SHIFT = 40


class Piece(NamedTuple):
    """What is wanted of one file: [start, stop), of which `stop` is None for a whole file, and the first position.

    `base` is what the positions of its records are counted from within the unit.
    """

    uri: str
    start: int
    stop: int | None
    first: int
    base: int


@dataclass(frozen=True)
class Unit:
    """A range of one file, or a list of whole files.

    `start` and `stop` are rows for parquet, items for a JSON document, and bytes of the decompressed stream for
    everything else; `first` is the position of a file's first record (rows count from 0, lines and items from 1).
    """

    name: str
    kind: str
    uri: str
    start: int
    stop: int
    first: int
    rows_estimate: int
    input_bytes: int
    modified: int | None = None
    files: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` turns back."""
        return {**asdict(self), "files": list(self.files)}

    def pieces(self) -> Iterator[Piece]:
        """The files of the unit, in order."""
        if not self.files:
            yield Piece(self.uri, self.start, self.stop, self.first, 0)
        for number, uri in enumerate(self.files):
            yield Piece(uri, 0, None, self.first, number << _FILE_SHIFT)

    def place(self, position: int) -> tuple[str, int]:
        """The file of a record, and its place there."""
        if not self.files:
            return self.uri, position
        if self.stop:  # files that are a document each: positions are places in the listing
            return self.files[position - self.start], position
        return self.files[position >> _FILE_SHIFT], position & ((1 << _FILE_SHIFT) - 1)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Unit:
        """The unit of a saved plan."""
        return cls(**{**value, "files": tuple(value["files"])})


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be embedded: where it is and why. Never its text."""

    position: int
    offset: int | None
    reason: str
    id: str | None = None
    text_sha256: str | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        assert self.reason in REASONS, self.reason

    def to_json(self) -> dict[str, Any]:
        """A JSON object for the quarantine file."""
        return asdict(self)


@dataclass
class UnitData:
    """What a unit holds: every record is a row of `table` or one of `rejected`.

    Columns: id string, title string or null, text string, the payload's columns, position int64 (see Unit.place).
    `given`: how many values of which payload columns there were; `nulled`: how many of them did not fit the column's
    type, and are null; `later`: how many there were in columns that the plan did not know, where it was to carry all.
    """

    table: pa.Table
    rejected: list[Rejected] = field(default_factory=list)
    nulled: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    later: Counter[str] = field(default_factory=Counter)

    @classmethod
    def joined(cls, parts: Sequence[UnitData]) -> UnitData:
        """Several as one, what is refused by position."""
        rejected = sorted((refused for part in parts for refused in part.rejected), key=_position)
        nulled, given, later = Counter[str](), Counter[str](), Counter[str]()
        for part in parts:
            nulled.update(part.nulled)
            given.update(part.given)
            later.update(part.later)
        return cls(pa.concat_tables([part.table for part in parts]), rejected, nulled, given, later)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """`nulled`, `given` and `later` as plain values, by these names."""
        return {"nulled": dict(self.nulled), "given": dict(self.given), "later": dict(self.later)}


def _position(refused: Rejected) -> tuple[int, int]:
    return refused.position, refused.offset or 0


def unit_name(ordinal: int, *covers: object) -> str:
    """The name of a unit: its place, and a hash of what it covers.

    >>> unit_name(3, "a.jsonl", 0, 100)
    '00003-38663fc6'
    """
    digest = hashlib.sha256(json.dumps(covers).encode()).hexdigest()[:8]
    return f"{ordinal:05d}-{digest}"
