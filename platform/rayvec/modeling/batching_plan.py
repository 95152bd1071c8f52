"""Which texts go together in one forward pass: sorted by length, within a budget of tokens. Knows numbers only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def plan_batches(lengths: np.ndarray, token_budget: int, *, padded: bool = False) -> Iterator[np.ndarray]:
    """Rows by batches, sorted by length (longest first: what does not fit in memory fails at once).

    Each batch holds at most `token_budget` tokens (counted with padding when `padded`), and at least one row.

    >>> [rows.tolist() for rows in plan_batches(np.array([3, 9, 3, 4]), token_budget=9)]
    [[1], [3, 0], [2]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        if padded:
            stop = start + max(1, token_budget // max(1, int(lengths[order[start]])))
        else:
            total = np.cumsum(lengths[order[start : start + token_budget]])
            stop = start + max(1, int(np.searchsorted(total, token_budget, side="right")))
        yield order[start:stop]
        start = stop
