"""The paper's experiments that train: every pooling of every kind of encoder, masking by share, score by step.

Each drives the jobs that exist: stages by `pipelines.train`, tables by `pipelines.table`. What a run trained is kept
in its cache and not trained again; tables are checked, with their tasks' data, before anything is trained.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines._systems import SystemConfig
from pipelines._tasks import TaskConfig
from pipelines.report import Report
from pipelines.table import TableConfig, check_table, measure_table
from pipelines.train import TrainConfig, train
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.errors import UserError

if TYPE_CHECKING:
    from rayvec.modeling.manifest import PoolingName

POOLINGS: dict[str, PoolingName] = {"EOS": "last_token", "mean": "mean", "weighted mean": "weighted_mean"}
#: Kinds of encoders in the paper's order: name, stages of the encoder, attention.
KINDS: tuple[tuple[str, int, Literal["causal", "bidirectional"]], ...] = (
    ("Uni", 0, "causal"),
    ("Bi", 0, "bidirectional"),
    ("Bi + MNTP", 1, "bidirectional"),
    ("Bi + MNTP + SimCSE", 2, "bidirectional"),
)
_COLOURS = ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")


class PoolingConfig(Config):
    """Which encoder and tasks, and whether the two rows that need training of their own are trained."""

    kind: Literal["pooling"] = "pooling"
    #: An encoder folder with MNTP and SimCSE as its first stages.
    encoder: str = "tiny"
    #: How "Uni + SimCSE" and "Bi + SimCSE" are trained from the encoder's base; null leaves them out.
    simcse: TrainConfig | None = None
    tasks: tuple[TaskConfig, ...] = ()
    root: str = ""
    output: str = ""
    cache: str = ""


class MaskingConfig(Config):
    """Which shares of the tokens are masked, how, and what is measured after each."""

    kind: Literal["masking_sweep"] = "masking_sweep"
    probabilities: tuple[float, ...] = Field((0.2, 0.4, 0.6, 0.8), min_length=1)
    #: BERT's 80/10/10, or all with the mask token; see Mntp.
    maskings: tuple[Literal["bert", "all"], ...] = Field(("bert", "all"), min_length=1)
    mntp: TrainConfig
    tasks: tuple[TaskConfig, ...] = ()
    root: str = ""
    output: str = ""
    cache: str = ""


class EfficiencyConfig(Config):
    """From which starts a supervised stage is trained, and what is measured while it trains."""

    kind: Literal["sample_efficiency"] = "sample_efficiency"
    encoder: str = "tiny"
    #: With its evaluation sets: what is measured is theirs.
    supervised: TrainConfig
    output: str = ""
    cache: str = ""


def measure_poolings(config: PoolingConfig) -> Report:
    """Every pooling of every kind of encoder, as the paper's table of 15 sets has it. Raises UserError."""
    stem, cache = _places(config.output, config.cache)
    started = time.monotonic()
    systems, order = [], []
    kinds = {kind: SystemConfig(name=kind, stages=stages, attention=attention) for kind, stages, attention in KINDS}
    runs = {} if config.simcse is None else _from_base(config, config.simcse, cache)
    kinds |= {kind: SystemConfig(name=kind, encoder=run.output) for kind, run in runs.items()}
    for kind, system in kinds.items():
        for name, pooling in POOLINGS.items():
            systems.append(system.replace(name=f"{kind}, {name}", pooling=pooling))
        order += [(f"{kind}, mean", f"{kind}, EOS"), (f"{kind}, mean", f"{kind}, weighted mean")]
    steps = ("Uni", "Bi + MNTP", "Bi + MNTP + SimCSE")
    order += [(f"{b}, mean", f"{a}, mean") for a, b in pairwise(steps)]
    asked = TableConfig(
        encoder=config.encoder, systems=tuple(systems), tasks=config.tasks, root=config.root, order=tuple(order),
        title="Pooling", output=f"{stem}.table.json", cache=cache,
    )  # fmt: skip
    table = _after_training(asked, runs.values())
    report = {
        "encoder": config.encoder,
        "tasks": [task.name for task in config.tasks],
        "kinds": {kind: {name: _average(table, f"{kind}, {name}") for name in POOLINGS} for kind in kinds},
        "order": table["order"],
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    storage.write_bytes(f"{stem}.md", (render_poolings(report) + "\n").encode())
    _draw_groups(report["kinds"], f"average of {', '.join(report['tasks'])}", f"{stem}.png")
    storage.write_json(config.output, report)
    return report


def _from_base(config: PoolingConfig, simcse: TrainConfig, cache: str) -> dict[str, TrainConfig]:
    """SimCSE straight from the base, read either way. Raises UserError for an encoder without the stages to compare."""
    from rayvec.modeling.folder import open_encoder

    encoder = open_encoder(config.encoder)
    encoder.after(max(stages for _, stages, _ in KINDS))
    ways: tuple[tuple[str, Literal["causal", "bidirectional"]], ...] = (("Uni", "causal"), ("Bi", "bidirectional"))
    return {
        f"{name} + SimCSE": simcse.replace(
            start=str(encoder.weights), attention=attention, output=uris.join(cache, f"simcse-{attention}")
        )
        for name, attention in ways
    }


def _after_training(asked: TableConfig, runs: Iterable[TrainConfig]) -> Report:
    """The table of what is trained first, unless it is there; what it would refuse is refused before."""
    check_table(asked)
    for run in runs:
        train(run)
    return measure_table(asked)


def render_poolings(report: Report) -> str:
    """A row a kind, a column a pooling, and what of the paper's order holds."""
    from pipelines.table import order_table
    from rayvec.evaluation.report import markdown
    from rayvec.evaluation.statistics import Estimate

    rows = [[kind, *(str(Estimate(**row[name])) for name in POOLINGS)] for kind, row in report["kinds"].items()]
    head = f"average of {', '.join(report['tasks'])}; mean [95 % interval]"
    only = "average" if len(report["tasks"]) > 1 else report["tasks"][0]
    order = order_table([row for row in report["order"] if row["task"] == only])
    return "\n\n".join([head, markdown(["", *POOLINGS], rows), order])


def sweep_masking(config: MaskingConfig) -> Report:
    """Train MNTP at each share of masked tokens and each way of masking, and measure each. Raises UserError."""
    stem, cache = _places(config.output, config.cache)
    _require_local(cache)
    started = time.monotonic()
    runs = []
    for masking in config.maskings:
        for probability in config.probabilities:
            stage = config.mntp.stage.replace(probability=probability, masking=masking)
            folder = uris.join(cache, f"mntp-{masking}-{probability:g}")
            runs.append((f"{masking} {probability:g}", config.mntp.replace(stage=stage, output=folder)))
    base = SystemConfig(name="untrained", encoder=config.mntp.start, attention="bidirectional")
    systems = [SystemConfig(name=name, encoder=run.output) for name, run in runs]
    asked = TableConfig(
        systems=(base, *systems), tasks=config.tasks, root=config.root, title="Masking",
        order=tuple((system.name, base.name) for system in systems), output=f"{stem}.table.json", cache=cache,
    )  # fmt: skip
    table = _after_training(asked, (run for _, run in runs))
    report: Report = {
        "tasks": [task.name for task in config.tasks],
        "untrained": _average(table, base.name),
        "maskings": {
            masking: {f"{p:g}": _average(table, f"{masking} {p:g}") for p in config.probabilities}
            for masking in config.maskings
        },
        "losses": {name: _lines(run.output)[-1]["loss"] for name, run in runs},
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    storage.write_bytes(f"{stem}.md", (render_masking(report) + "\n").encode())
    lines = {
        masking: ([float(p) for p in row], [found["mean"] for found in row.values()])
        for masking, row in report["maskings"].items()
    }
    level = report["untrained"]["mean"]
    _draw_lines(lines, "share of tokens masked", ", ".join(report["tasks"]), f"{stem}.png", level)
    storage.write_json(config.output, report)
    return report


def render_masking(report: Report) -> str:
    """A row a share, a column a way of masking."""
    from rayvec.evaluation.report import markdown
    from rayvec.evaluation.statistics import Estimate

    maskings = report["maskings"]
    shares = list(next(iter(maskings.values())))
    rows = [[f"{100 * float(p):g}%", *(str(Estimate(**maskings[m][p])) for m in maskings)] for p in shares]
    head = f"average of {', '.join(report['tasks'])}; untrained {Estimate(**report['untrained'])}"
    return f"{head}\n\n{markdown(['masked', *maskings], rows)}"


def measure_efficiency(config: EfficiencyConfig) -> Report:
    """Score against supervised training steps, with and without the recipe before it. Raises UserError."""
    from rayvec.modeling.encoder import TextEncoder
    from rayvec.modeling.folder import open_encoder

    stem, cache = _places(config.output, config.cache)
    _require_local(cache)
    if not config.supervised.evaluation:
        raise UserError("supervised.evaluation is required: what is measured while it trains; give a set")
    started = time.monotonic()
    encoder = open_encoder(config.encoder)
    starts = {kind: encoder.after(stages).with_settings(attention=attention) for kind, stages, attention in KINDS}
    curves: dict[str, list[dict[str, Any]]] = {}
    for kind, stages, attention in KINDS:
        # What is kept is of one encoder: the cache may be asked about another next.
        name = f"{stages}-{attention}-{encoder.fingerprint.short}"
        start, trained = uris.join(cache, f"start-{name}"), uris.join(cache, f"from-{name}")
        if storage.size(uris.join(start, "rayvec.json")) < 0:
            TextEncoder.from_folder(starts[kind], device="cpu").save(start)
        train(config.supervised.replace(start=start, output=trained))
        curves[kind] = [
            {"step": line["step"], **{name: value for name, value in line.items() if name.startswith("eval/")}}
            for line in _lines(trained)
            if any(name.startswith("eval/") for name in line)
        ]
    metrics = [name for name in curves["Uni"][0] if name.startswith("eval/")]
    report = {
        "encoder": config.encoder,
        "metrics": metrics,
        "curves": curves,
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    storage.write_bytes(f"{stem}.md", (render_efficiency(report) + "\n").encode())
    for metric in metrics:
        lines = {kind: ([r["step"] for r in rows], [r[metric] for r in rows]) for kind, rows in curves.items()}
        name = "" if metric == metrics[0] else f".{metric.replace('/', '-')}"
        _draw_lines(lines, "supervised steps", metric.removeprefix("eval/"), f"{stem}{name}.png")
    storage.write_json(config.output, report)
    return report


def render_efficiency(report: Report) -> str:
    """A row a start, a column a step that was measured; the first metric."""
    from rayvec.evaluation.report import markdown

    metric, curves = report["metrics"][0], report["curves"]
    steps = [row["step"] for row in next(iter(curves.values()))]
    rows = [[kind, *(f"{row[metric]:.3f}" for row in found)] for kind, found in curves.items()]
    return f"{metric.removeprefix('eval/')}\n\n{markdown(['start, after so many steps', *map(str, steps)], rows)}"


def _places(output: str, cache: str) -> tuple[str, str]:
    if not output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")
    stem = output.removesuffix(".json")
    return stem, cache or f"{stem}.cache"


def _require_local(cache: str) -> None:
    if not uris.is_local(cache):
        raise UserError(
            f"cache = {cache} (beside the output by default): give a local or mounted folder with --set cache=DIR"
        )


def _lines(folder: str) -> list[dict[str, Any]]:
    text = Path(uris.local_path(folder), "training", "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _average(table: Report, system: str) -> dict[str, float]:
    found: dict[str, float] = table["averages"][system]
    return found


def _draw_groups(kinds: dict[str, dict[str, dict[str, float]]], label: str, uri: str) -> None:
    """Write a PNG with a group of bars a kind, a bar a pooling, intervals as whiskers."""
    import numpy as np

    figure, axes = _figure(max(6.0, 1.25 * len(kinds) + 2))
    for index, pooling in enumerate(POOLINGS):
        found = [row[pooling] for row in kinds.values()]
        places = np.arange(len(kinds)) + (index - 1) * 0.27
        whiskers = [[max(0.0, e["mean"] - e["low"]) for e in found], [max(0.0, e["high"] - e["mean"]) for e in found]]
        means = [e["mean"] for e in found]
        axes.bar(places, means, 0.25, yerr=whiskers, label=pooling, color=_COLOURS[index], error_kw={"elinewidth": 1})
    axes.set_xticks(range(len(kinds)), list(kinds), fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, uri)


def _draw_lines(
    lines: dict[str, tuple[list[float], list[float]]], x: str, y: str, uri: str, level: float | None = None
) -> None:
    """Write a PNG with a line a name; `level` is where there was no training."""
    figure, axes = _figure(6.0)
    for index, (name, (xs, ys)) in enumerate(lines.items(), start=1):
        axes.plot(xs, ys, marker="o", markersize=4, label=name, color=_COLOURS[index % len(_COLOURS)])
    if level is not None:
        axes.axhline(level, color="#999999", linewidth=1, linestyle=":", label="untrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, uri)


def _figure(width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.8), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, uri: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(uri, buffer.getvalue())
