"""Lengths in tokens, counted in classes: what a record holds of a unit, and their histogram as a PNG.

Knows numbers. Knows no file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

#: Upper ends of the classes: two an octave. The last class takes what is longer.
ENDS = tuple(round(2 ** (step / 2)) for step in range(2, 41))
CUT_COLOUR, WHOLE_COLOUR = "#c1554d", "#3b6ea5"


def counted(lengths_N: np.ndarray) -> list[int]:
    """How many lengths fall into each class, up to the last that has any: over ENDS[i - 1], at most ENDS[i].

    >>> ENDS[:6], counted(np.array([1, 2, 3, 4, 4, 7]))
    ((2, 3, 4, 6, 8, 11), [2, 1, 2, 0, 1])
    """
    classes_N = np.minimum(np.searchsorted(ENDS, lengths_N), len(ENDS) - 1)
    return np.bincount(classes_N).tolist() if len(lengths_N) else []


def added(counts: Sequence[Sequence[int]]) -> list[int]:
    """The sum of several counts.

    >>> added([[1, 2], [0, 1, 5]])
    [1, 3, 5]
    """
    width = max((len(one) for one in counts), default=0)
    return [sum(one[i] for one in counts if i < len(one)) for i in range(width)]


def histogram(counts: Sequence[int], truncated: Sequence[int]) -> bytes:
    """The rows by their length as a PNG, those that were cut off at their end in another colour.

    Both are counts by class; `truncated` counts some of the rows in `counts`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first = next((i for i, count in enumerate(counts) if count), 0)
    places = np.arange(first, len(counts))
    cut = np.array([*truncated, *[0] * (len(counts) - len(truncated))][first:], np.int64)
    whole = np.array(counts[first:], np.int64) - cut
    axes.bar(places, whole, 0.9, color=WHOLE_COLOUR, label=f"read whole: {whole.sum():,}")
    if cut.any():
        axes.bar(places, cut, 0.9, bottom=whole, color=CUT_COLOUR, label=f"end left out: {cut.sum():,}")
    axes.set_xticks(places, [f"≤ {ENDS[place]:,}" for place in places], rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("tokens")
    axes.set_ylabel("rows")
    axes.set_title("Lengths of what was embedded", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
