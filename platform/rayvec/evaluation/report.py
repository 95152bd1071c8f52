"""Reports of a measurement: a Markdown table that a terminal shows well too, and a bar chart as PNG.

Knows names and estimates. Knows no task and no system.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from rayvec import storage
from rayvec.evaluation.statistics import Estimate

Estimates = Mapping[str, Mapping[str, Estimate]]

#: Okabe and Ito's colours, told apart by all kinds of eyes.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def table(systems: Estimates, corner: str = "system") -> str:
    """A row a system, a column a metric, each as mean [low, high].

    >>> print(table({"dense": {"mrr": Estimate(0.5, 0.4, 0.6)}}))
    | system | mrr                  |
    | :----- | :------------------- |
    | dense  | 0.500 [0.400, 0.600] |
    """
    metrics = list(dict.fromkeys(metric for row in systems.values() for metric in row))
    rows = [[name, *(str(row.get(metric, "")) for metric in metrics)] for name, row in systems.items()]
    return markdown([corner, *metrics], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    ruler = [":" + "-" * (width - 1) for width in widths]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, ruler, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def p_value(value: float) -> str:
    """A p-value as people write it.

    >>> p_value(0.00001), p_value(0.0312)
    ('p < 0.001', 'p = 0.031')
    """
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def bar_chart(systems: Estimates, metrics: Sequence[str], title: str, uri: str) -> None:
    """Write a PNG with a group of bars a system, a bar a metric, and the intervals as whiskers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 1.1 * len(systems) + 2.5), 4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places, width = np.arange(len(systems)), 0.8 / len(metrics)
    for index, metric in enumerate(metrics):
        found = [row[metric] for row in systems.values()]
        means = [estimate.mean for estimate in found]
        # A percentile interval may leave out the mean itself; a whisker has no negative length.
        whiskers = [[max(0.0, e.mean - e.low) for e in found], [max(0.0, e.high - e.mean) for e in found]]
        bars = axes.bar(
            places + (index - (len(metrics) - 1) / 2) * width,
            means,
            width * 0.92,
            yerr=whiskers,
            capsize=2,
            label=metric,
            color=_COLOURS[index % len(_COLOURS)],
            error_kw={"elinewidth": 1, "alpha": 0.7},
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.set_xticks(
        places, list(systems), rotation=20 if len(systems) > 4 else 0, ha="right" if len(systems) > 4 else "center"
    )
    axes.set_title(title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    # Beside the bars: to find the best place among them takes matplotlib long.
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(uri, buffer.getvalue())


def grouped_bars(systems: Estimates, tasks: Sequence[str], title: str, uri: str) -> None:
    """Write a PNG with a panel a task and a horizontal bar a system; a system that took no part has none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    height = (0.34 * len(systems) + 0.9) * rows + 0.4
    figure = Figure(figsize=(3.1 * columns + 1.6, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    names = list(systems)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        for place, name in enumerate(names):
            if task in systems[name]:
                found = systems[name][task]
                whisker = [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
                axes.barh(
                    place, found.mean, xerr=whisker, color=_COLOURS[place % len(_COLOURS)],
                    height=0.72, error_kw={"elinewidth": 1, "alpha": 0.7},
                )  # fmt: skip
        axes.set_title(task, fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(uri, buffer.getvalue())
