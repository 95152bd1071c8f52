"""Which column of a source is what: id, title, text, payload; found by configured or usual name.

Knows names and Arrow types. Knows no file format, no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError
from rayvec.schema import ID, RESERVED, TEXT, TITLE

POSITION = "position"
#: Names looked for when the configuration names none; `_id` is BEIR's.
ID_NAMES = ("id", "_id")
TITLE_NAMES = ("title",)
TEXT_NAMES = ("text", "abstract", "content", "body")


@dataclass(frozen=True)
class Layout:
    """Which columns are id, title and text (joined by newlines), the payload's names and types, and which are `left`.

    A column is a name, or a path of names joined by dots into columns inside others. See SourceConfig for the rest.
    """

    id: str | None
    title: str | None
    text: tuple[str, ...]
    payload: tuple[tuple[str, pa.DataType], ...] = ()
    missing_id: Literal["quarantine", "make"] = "quarantine"
    make_ids: Literal["path", "content"] = "path"
    left: tuple[str, ...] = ()
    #: Whether every column was to be carried: one that begins where none has looked is told then.
    carries_all: bool = False
    #: Of payload columns that are text because their values are of several types: which types those are.
    mixed: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        named = [self.id, self.title, *self.text, *(name for name, _ in self.payload)]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def schema(self) -> pa.Schema:
        """The schema of the tables that reading gives."""
        fields = [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(TITLE, pa.string()),
            pa.field(TEXT, pa.string(), nullable=False),
            *(pa.field(name, type_) for name, type_ in self.payload),
            pa.field(POSITION, pa.int64(), nullable=False),
        ]
        return pa.schema(fields)


def named_columns(config: SourceConfig) -> list[str]:
    """The columns that a configuration names."""
    payload = () if isinstance(config.payload, str) else config.payload
    names = [config.id_column, config.title_column, *config.text_columns, *payload]
    return [name for name in names if name is not None]


def resolve_layout(
    where: str, columns: Mapping[str, pa.DataType], config: SourceConfig, mixed: Mapping[str, str] | None = None
) -> Layout:
    """Find the columns by configured or usual name. Raises UserError that lists what is there.

    columns: those that are there, and of those inside others the ones that the configuration names. mixed: of those
    that are text for want of one type, which types their values are of.
    """
    id_column, title_column, payload = config.id_column, config.title_column, config.payload
    for key, names in (
        ("id_column", [id_column]),
        ("title_column", [title_column]),
        ("text_columns", config.text_columns),
    ):
        _require(where, columns, f"source.{key}", [name for name in names if name is not None])
    text = config.text_columns or _first(columns, TEXT_NAMES)
    if not text:
        raise UserError(
            f"{where} has no column {' or '.join(map(repr, TEXT_NAMES))}; it has {_list(columns)}: "
            "name the text with --set source.text_columns=[…]"
        )
    id_ = id_column or next(iter(_first(columns, ID_NAMES)), None)
    title = title_column or next((name for name in _first(columns, TITLE_NAMES) if name not in text), None)
    taken = {id_, title, *text}
    chosen = [name for name in columns if name not in taken] if isinstance(payload, str) else list(payload)
    _require(where, columns, "source.payload", chosen)
    reserved = sorted((RESERVED | {POSITION}) & set(chosen))
    if reserved:
        raise UserError(
            f"{where}: source.payload may not carry {_list(reserved)}, names that rayvec uses itself; "
            "list the other columns with --set source.payload=[…], or rename these"
        )
    carried = tuple((name, columns[name]) for name in dict.fromkeys(chosen))
    used = {name for path in [*taken, *chosen] if path is not None for name in (path, path.partition(".")[0])}
    left = tuple(name for name in columns if name not in used and "." not in name)
    mixtures = tuple((name, mixed[name]) for name, _ in carried if name in mixed) if mixed else ()
    return Layout(id_, title, text, carried, config.missing_id, config.make_ids, left, payload == "all", mixtures)


def _first(columns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    there = set(columns)
    return next(((name,) for name in names if name in there), ())


def _require(where: str, columns: Mapping[str, pa.DataType], key: str, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"{where} has no column {_list(missing)} ({key}); it has {_list(columns)}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
