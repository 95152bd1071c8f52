"""What a person sees of a run: metrics.jsonl, TensorBoard events, and the curves as a PNG. Knows numbers by name."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayvec.training.loop import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = logging.getLogger("rayvec.training")
#: Panels of the picture, in this order; a metric that a stage does not have has none.
PANELS = ("loss", "masked_accuracy", "accuracy", "alignment", "uniformity", "learning_rate", "gradient_norm")


class MetricsLog:
    """A loop hook (on rank 0): each logged line goes to a file, to TensorBoard and to the log.

    history: lines of the run that is continued; what came after its checkpoint is dropped.
    """

    def __init__(self, folder: Path, history: str = "", start_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        #: The same for people; the driver shows it as it grows.
        self.lines = folder / "progress.log"
        self.lines.touch()
        self.history = history
        self.path.write_text(history, encoding="utf-8")
        self._writer = _tensorboard(folder / "tensorboard", start_step)

    def logged(self, progress: Progress) -> None:
        """Write one line."""
        values = {"step": progress.step, **progress.metrics, "tokens_per_second": progress.tokens_per_second}
        line = json.dumps(values) + "\n"
        self.history += line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, progress.step)
        self._writer.flush()
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(f"{progress.line()}\n")
        LOG.info(progress.line())

    def stepped(self, step: int) -> None:
        """Nothing happens between logged lines."""

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def _tensorboard(folder: Path, start_step: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start_step or None)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; none when there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def draw(metrics: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """The curves of a run as one PNG, a panel a metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in PANELS if any(name in line for line in metrics)]
    if not names:
        return
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes: Any = figure.add_subplot(rows, columns, place + 1)
        points = [(line["step"], line[name]) for line in metrics if name in line]
        axes.plot(*zip(*points, strict=True), linewidth=1.4)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
