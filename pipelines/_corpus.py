"""A corpus read unit by unit, so many of its documents, and whether its files are still the same.

Memory holds one unit and what is picked. Which documents are picked follows from their order and number alone, not from
how the corpus is cut into files or units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from rayvec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from rayvec.data.files import Listing
    from rayvec.data.source_config import SourceConfig
    from rayvec.training.stages import Data, PairSet

T = TypeVar("T")
#: Records that are read at once.
UNIT_ROWS = 4096
#: What is kept of a stream is at most so many times what is wanted of it: the more, the more equal the distances.
SPARE = 4


def tables(config: SourceConfig, cache: str) -> Iterator[pa.Table]:
    """The documents of a source, a table a unit; see `UnitData`. Raises UserError."""
    from rayvec.data.sources import open_source

    source = open_source(config, cache=cache)
    for unit in source.units(UNIT_ROWS):
        yield source.read(unit).table


def listed(source: SourceConfig) -> str:
    """A digest of the source's files as they are now: names, sizes, times. "" where there are none, as of pydocs."""
    return _digest([source])


def listed_data(data: Data) -> str:
    """A digest of the files that a stage trains on, as they are now; "" where some are not there, as of pydocs."""
    return _digest(_parts(data))


def require_data(data: Data) -> None:
    """Raise UserError where a stage's files are not there."""
    _listings(_parts(data))


def _parts(data: Data) -> Sequence[SourceConfig | PairSet]:
    return (data.source, *data.also) if data.kind == "texts" else data.sets


def _digest(parts: Sequence[SourceConfig | PairSet]) -> str:
    try:
        return "+".join(listing.digest() for listing in _listings(parts))
    except UserError:  # who reads them says what is missing
        return ""


def _listings(parts: Sequence[SourceConfig | PairSet]) -> list[Listing]:
    from rayvec.data.pair_files import PYDOCS, list_pairs
    from rayvec.data.source_config import SourceConfig
    from rayvec.data.sources import list_source

    found = []
    for part in parts:
        if isinstance(part, SourceConfig):
            found += [] if part.kind == "pydocs" else [list_source(part)]
        elif part.path != PYDOCS:
            found.append(list_pairs(part.path))
    return found


def spread(values: Sequence[T], limit: int) -> list[T]:
    """So many of the values, at equal distances; all where there are no more.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    if len(values) <= limit:
        return list(values)
    return [values[i * len(values) // limit] for i in range(limit)]


class Spread(Generic[T]):
    """So many of a stream of values, spread over all of it, whose number is known only at its end.

    Every second, fourth, eighth… value is kept, as there are more of them; of those that are left, `picked` takes some
    at equal distances. Of up to SPARE · limit values it takes what `spread` would.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: list[T] = []
        self._step = 1
        self._seen = 0

    def add(self, value: T) -> None:
        """The next value."""
        if self._seen % self._step == 0:
            if len(self._kept) == SPARE * self.limit:
                # An even number: the next value's place is a multiple of the longer step too.
                self._kept = self._kept[::2]
                self._step *= 2
            self._kept.append(value)
        self._seen += 1

    def picked(self, limit: int | None = None) -> list[T]:
        """So many of them, in their order; `limit`: fewer than was said at first."""
        return spread(self._kept, self.limit if limit is None else limit)
