"""Trade-offs: which of many choices no other beats in everything, and pictures of them as PNG.

Knows numbers and names. Knows no index and no encoder.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec import storage

#: Okabe and Ito's colours, told apart by all kinds of eyes, black, and a few more for where those are all taken.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999", "#F0E442", "#7A3E9D",
    "#8C564B", "#17BECF",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Choice:
    """What a choice takes and gives; `colour` and `marker` are the names of the two kinds that it is of."""

    bytes: float
    quality: float
    speed: float
    colour: str
    marker: str


def pareto(costs_NM: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which rows [N] no other row beats: as good in all M costs (less is better) and better in one.

    >>> pareto([[1, 5], [2, 2], [3, 3]]).tolist()
    [True, True, False]
    """
    costs = np.asarray(costs_NM, np.float64)
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))


def draw_choices(
    choices: Sequence[Choice], target: float, best: int | None, quality: str, title: str, uri: str
) -> None:
    """Write a PNG: quality over bytes and over speed, each with the line of those that no other beats in these two."""
    figure = _figure(11.5, 5.2)
    panels = figure.subplots(1, 2, sharey=True)
    _panel(panels[0], choices, [c.bytes for c in choices], target, best, cheap=True)
    _panel(panels[1], choices, [c.speed for c in choices], target, best, cheap=False)
    panels[0].set_xlabel("bytes per vector in memory (fewer is better)")
    panels[1].set_xlabel("queries/s on one core among all vectors (more is better)")
    panels[0].set_ylabel(quality)
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=_legend(choices, best), loc="outside right upper", fontsize=8, frameon=False)
    _save(figure, uri)


def _panel(axes: Any, choices: Sequence[Choice], values: Sequence[float], target: float, best: int | None, *, cheap: bool) -> None:  # fmt: skip  # noqa: E501
    colours, markers = _styles(choices)
    qualities = [choice.quality for choice in choices]
    front = pareto(np.column_stack([values if cheap else np.negative(values), np.negative(qualities)]))
    # Between two points of the front nothing is known to be possible: a staircase, not a slope.
    steps = "steps-post" if cheap else "steps-pre"
    order = [i for i in np.argsort(values) if front[i]]
    axes.plot(
        [values[i] for i in order],
        [qualities[i] for i in order],
        color="#666666",
        linewidth=1,
        zorder=1,
        drawstyle=steps,
    )
    for i, choice in enumerate(choices):
        face = colours[choice.colour] if front[i] else "none"
        axes.scatter(values[i], choice.quality, s=44 if front[i] else 24, marker=markers[choice.marker],
                     facecolors=face, edgecolors=colours[choice.colour], alpha=1 if front[i] else 0.55, zorder=3)  # fmt: skip  # noqa: E501
    if best is not None:
        axes.scatter(
            values[best], qualities[best], s=190, facecolors="none", edgecolors="black", linewidths=1.3, zorder=4
        )
    axes.axhline(target, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xscale("log")
    _plain_ticks(axes, values)
    axes.grid(alpha=0.2, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(axes: Any, values: Sequence[float]) -> None:
    """1, 2, 5, 10, … as plain numbers: a decade or two hold all there is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    wide = max(values) / max(min(values), 1e-9) > 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _styles(choices: Sequence[Choice]) -> tuple[dict[str, str], dict[str, str]]:
    colours = sorted({choice.colour for choice in choices})
    markers = sorted({choice.marker for choice in choices}, key=lambda name: (-_leading(name), name))
    return (
        {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(colours)},
        {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(markers)},
    )


def _leading(name: str) -> int:
    """The number that a name begins with, so that 512 stands before 64."""
    return int(name.partition(" ")[0]) if name[:1].isdigit() else 0


def _legend(choices: Sequence[Choice], best: int | None) -> list[Any]:
    from matplotlib.lines import Line2D

    colours, markers = _styles(choices)

    def mark(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **style)

    found = [mark(name, marker="o", color=colour) for name, colour in colours.items()]
    found += [mark(name, marker=m, markerfacecolor="none", color="#444444") for name, m in markers.items()]
    found.append(Line2D([], [], color="#666666", linewidth=1, label="Pareto front"))
    if best is not None:
        found.append(mark("recommended", marker="o", markersize=11, markerfacecolor="none", color="black"))
    return found


def draw_dimensions(explained_D: Sequence[float], recalls: Mapping[str, Mapping[int, float]], uri: str) -> None:
    """Write a PNG: the share of variance that the first 1…D axes hold, and recall@10 in fewer dimensions, each way."""
    figure = _figure(10, 4)
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(1, len(explained_D) + 1), explained_D, color=COLOURS[0])
    left.set_xlabel("dimensions kept by PCA")
    left.set_ylabel("explained variance")
    for i, (way, row) in enumerate(recalls.items()):
        right.plot(list(row), list(row.values()), marker=MARKERS[i], color=COLOURS[i], label=way)
    right.set_xlabel("dimensions kept")
    right.set_ylabel("recall@10 against all dimensions")
    right.set_xscale("log", base=2)
    right.set_xticks(sorted({number for row in recalls.values() for number in row}))
    right.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    if recalls:
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, uri)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, uri: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(uri, buffer.getvalue())
