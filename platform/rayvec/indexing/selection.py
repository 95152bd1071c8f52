"""A selection: the live rows that a search may find, as each part of an index wants to be told. Knows rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayvec.indexing.ranking import Rows


@dataclass(frozen=True)
class Selection:
    """Rows [N] that may be found, how many they are, and for each shard those of its own rows that may not.

    filter: the filter that they passed, as JSON.
    """

    allowed_N: npt.NDArray[np.bool_]
    count: int
    dropped_of: list[Rows | None]
    filter: str

    @classmethod
    def of(cls, allowed_N: npt.NDArray[np.bool_], shards: list[tuple[int, int]], filter_: str) -> Selection:
        """shards: first row and number of rows of each."""
        dropped = [np.flatnonzero(~allowed_N[start : start + rows]).astype(np.int64) for start, rows in shards]
        gone = [rows if len(rows) else None for rows in dropped]
        return cls(allowed_N, int(np.count_nonzero(allowed_N)), gone, filter_)
