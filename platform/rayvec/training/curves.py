"""What a person sees of a run: metrics.jsonl, a line of progress, trackers, and the curves as a PNG.

Knows numbers by name: those of training steps, and those of evaluations, named eval/SET/METRIC, on lines of their own.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rayvec.training.loop import Progress
from rayvec.training.trackers import TrackerName, open_trackers

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

LOG = logging.getLogger("rayvec.training")
Line = dict[str, float]
EVALUATION = "eval/"


class MetricsLog:
    """A loop hook (on rank 0): each logged line goes to a file, to the trackers and to the log.

    history: lines of the run that is continued; what came after its checkpoint is dropped. run_name and config are for
    the trackers. Raises UserError when a tracker does not open.
    """

    def __init__(
        self,
        folder: Path,
        history: str = "",
        start_step: int = 0,
        *,
        trackers: Sequence[TrackerName] = ("tensorboard",),
        run_name: str = "",
        config: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = LOG.info,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.say = say
        self.history = history
        self.path.write_text(history, encoding="utf-8")
        self._trackers = open_trackers(
            trackers, folder, run_name=run_name, config=config or {}, start_step=start_step, say=say
        )

    def logged(self, progress: Progress) -> None:
        """Write one line of training."""
        self._write(progress.step, {**progress.metrics, "tokens_per_second": progress.tokens_per_second})
        self.say(progress.line())

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of evaluation, its names as eval/SET/METRIC."""
        self._write(step, values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"step {step}  {shown}")

    def stepped(self, step: int) -> None:
        """Nothing happens between logged lines."""

    def close(self, *, failed: bool = False) -> None:
        """Close the trackers; a second call does nothing."""
        self._trackers.close(failed=failed)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **values}) + "\n"
        self.history += line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        self._trackers.log(step, values)


def read_metrics(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl; none when there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def first_values(metrics: Sequence[Line]) -> Line:
    """The first value of each name but `step`: lines of training and of evaluation hold different ones.

    >>> first_values([{"step": 0, "eval/sts/spearman": 0.1}, {"step": 5, "loss": 3.0}, {"step": 9, "loss": 2.0}])
    {'eval/sts/spearman': 0.1, 'loss': 3.0}
    """
    values: Line = {}
    for line in metrics:
        values = values | {name: value for name, value in line.items() if name != "step" and name not in values}
    return values


def last_values(metrics: Sequence[Line]) -> Line:
    """The last value of each name but `step`."""
    values: Line = {}
    for line in metrics:
        values |= {name: value for name, value in line.items() if name != "step"}
    return values


class Style(NamedTuple):
    """How a metric is drawn."""

    title: str
    unit: str = ""
    #: Whether single lines are noise, and their mean is what one looks for.
    noisy: bool = True


#: The first panels, in this order; what else a run has logged comes after them.
STYLES = {
    "loss": Style("loss", "nats"),
    "masked_accuracy": Style("accuracy at masked positions", "share guessed right"),
    "accuracy": Style("accuracy in the batch", "share ranked first"),
    "alignment": Style("alignment (less is closer)", "squared distance"),
    "uniformity": Style("uniformity (less is more even)", "log potential"),
    "learning_rate": Style("learning rate", noisy=False),
    "gradient_norm": Style("gradient norm before clipping"),
    "tokens_per_second": Style("speed", "tokens / s"),
}
#: So many points and more are drawn faint, below their moving mean.
MANY = 40
#: More evaluation sets than this have their legend beside the panel.
FEW = 6
#: There are ten colours; the next ten curves differ by their dashes.
DASHES = ("-", "--", ":")
#: Positive values that span so many times their least are drawn on a logarithmic scale.
WIDE = 100.0


@dataclass
class Panel:
    """Curves that share axes: one of training, or one evaluation metric on all of its sets."""

    style: Style
    #: (step, value), by the name in the legend.
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    evaluation: bool = False


def panels(metrics: Sequence[Line]) -> list[Panel]:
    """What is to be drawn, in order: training, then a panel for each evaluation metric."""
    names = dict.fromkeys(name for line in metrics for name in line if name != "step")
    known = [name for name in STYLES if name in names]
    training = [*known, *(name for name in names if name not in STYLES and not name.startswith(EVALUATION))]
    found = {name: Panel(STYLES.get(name) or Style(name.replace("_", " "))) for name in training}
    for name in names:
        if name.startswith(EVALUATION):
            metric = name.rpartition("/")[2]
            found.setdefault(EVALUATION + metric, Panel(Style(f"evaluation: {metric}"), evaluation=True))
    for line in metrics:
        for name, value in line.items():
            if name == "step" or not math.isfinite(value):
                continue
            owner, _, metric = name.removeprefix(EVALUATION).rpartition("/")
            panel = found[EVALUATION + metric if name.startswith(EVALUATION) else name]
            panel.curves.setdefault(owner or metric, []).append((line["step"], value))
    return [panel for panel in found.values() if panel.curves]


def draw(metrics: Sequence[Line], path: Path, title: str) -> None:
    """The curves of a run as one PNG, a panel a metric; nothing where there are no metrics."""
    if panels(metrics):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure(metrics, title).savefig(path, dpi=110)


def figure(metrics: Sequence[Line], title: str) -> Figure:
    """The curves of a run, of which there is at least one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(metrics)
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    result = Figure(figsize=(4.4 * columns, 3.0 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(result)
    last = max(line["step"] for line in metrics)
    for place, panel in enumerate(shown):
        _draw_panel(result.add_subplot(rows, columns, place + 1), panel, last)
    result.suptitle(title, fontsize=11, parse_math=False)
    return result


def _draw_panel(axes: Any, panel: Panel, last: float) -> None:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    if log := _spans_widely(panel):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    for number, (name, points) in enumerate(panel.curves.items()):
        steps, values = (np.asarray(row, np.float64) for row in zip(*points, strict=True))
        look = {"color": f"C{number % 10}", "linestyle": DASHES[number // 10 % len(DASHES)]}
        if panel.evaluation or len(values) < 2:
            axes.plot(steps, values, marker="o", markersize=4, linewidth=1.2, label=name, **look)
        elif panel.style.noisy and len(values) >= MANY:
            axes.plot(steps, values, linewidth=0.8, alpha=0.3, **look)
            axes.plot(*trend(steps, values, log=log), linewidth=1.8, **look)
        else:
            axes.plot(steps, values, linewidth=1.4, **look)
    axes.set_title(panel.style.title, fontsize=10, parse_math=False)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(panel.style.unit, fontsize=8)
    axes.set_xlim(-0.02 * last, 1.02 * last or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if panel.evaluation:
        # Of many sets, beside the panel: inside it would hide what it names.
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "ncols": 1 + (len(panel.curves) - 1) // 16}
        axes.legend(fontsize=7, **(beside if len(panel.curves) > FEW else {}))


def _spans_widely(panel: Panel) -> bool:
    values = [value for points in panel.curves.values() for _, value in points]
    return panel.style.noisy and not panel.evaluation and min(values) > 0 and max(values) >= WIDE * min(values)


def trend(steps: np.ndarray, values: np.ndarray, *, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The moving mean over a tenth of the points, and its steps; of logarithms where they are drawn so.

    Ends are left out where the mean would be of so few that it is noise again.
    """
    import numpy as np

    window = len(values) // 10
    inner = slice(window // 4, len(values) - window // 4)
    means = np.exp(moving_mean(np.log(values), window)) if log else moving_mean(values, window)
    return steps[inner], means[inner]


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of `window` values around each, of fewer at both ends, alike on both sides: [n] to [n].

    >>> import numpy as np
    >>> moving_mean(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist()
    [0.0, 3.0, 3.0, 0.0]
    """
    import numpy as np

    place = np.arange(len(values))
    half = np.minimum(window // 2, np.minimum(place, place[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[place + half + 1] - sums[place - half]) / (2 * half + 1)
