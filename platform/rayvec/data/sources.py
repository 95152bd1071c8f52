"""Sources: a corpus in files, cut into units of work and read as Arrow tables of documents.

`open_source(config)` finds the files and their columns, and refuses what cannot be read before any work is done. Knows
which format has which reader (the READERS table). Knows no encoder, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rayvec.config import Config
from rayvec.data.units import Input, Rejected, Unit, UnitData

__all__ = ["Input", "Rejected", "Source", "SourceConfig", "Unit", "UnitData", "open_source"]

Kind = Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "pydocs"]


class SourceConfig(Config):
    """Where the documents come from, and which of their columns are what."""

    kind: Kind = "auto"
    #: A file, a folder (read recursively), a glob pattern, or a URI of these. Not used by pydocs.
    path: str = ""
    id_column: str | None = None
    title_column: str | None = None
    text_columns: tuple[str, ...] = ()
    #: Columns carried beside the text; "all" for every column that is not id, title or text.
    payload: tuple[str, ...] | Literal["all"] = ()


@dataclass
class Source:
    """An opened source. Plain data, so it can be sent to the workers that read its units."""

    config: SourceConfig

    def inputs(self) -> list[Input]:
        """The files, in the order in which they are read."""
        raise NotImplementedError

    def units(self, unit_rows: int) -> list[Unit]:
        """Cut the source into units of about `unit_rows` records. The same files give the same units."""
        raise NotImplementedError

    def read(self, unit: Unit) -> UnitData:
        """Read one unit. Raises MismatchError when its file has changed since the plan."""
        raise NotImplementedError


def open_source(config: SourceConfig, cache: str | None = None) -> Source:
    """Find the files and their columns. Raises UserError when something is missing or of the wrong format.

    `cache` is a folder or URI (that every worker can read) in which pydocs are collected once.
    """
    raise NotImplementedError


def _unused(_: Sequence[Rejected]) -> None: ...
