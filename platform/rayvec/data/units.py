"""Units of work: what a source is cut into, what reading one gives, and why a record may be refused.

A unit is a range of the input fixed at plan time; it is what is worked, retried, committed and resumed. Knows no file
format, no encoder, no Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

#: Why a record is refused: a closed table, so that quarantine files can be counted by reason.
REASONS = {
    "invalid_json": "the line is not one JSON object",
    "invalid_utf8": "the bytes, or an escape in them, are not valid Unicode text",
    "invalid_csv": "the record has an unclosed quote, or not as many fields as the header",
    "missing_text": "no text column is there, or all are null",
    "empty_text": "the text holds white space or invisible characters only",
    "bad_id": "the id is null, empty, over 512 bytes, or neither a string nor a whole number",
    "bad_value": "the text, the title or a payload value is not of its column's type",
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


@dataclass(frozen=True)
class Unit:
    """A range of one file, or a list of whole files.

    `start` and `stop` are rows for parquet, and bytes of the decompressed stream for everything else; `first` is the
    position of the first record (rows count from 0, lines from 1).
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

    Columns: id string, title string or null, text string, the payload's columns, position int64.
    """

    table: pa.Table
    rejected: list[Rejected] = field(default_factory=list)


def unit_name(ordinal: int, *covers: object) -> str:
    """The name of a unit: its place, and a hash of what it covers.

    >>> unit_name(3, "a.jsonl", 0, 100)
    '00003-38663fc6'
    """
    digest = hashlib.sha256(json.dumps(covers).encode()).hexdigest()[:8]
    return f"{ordinal:05d}-{digest}"
