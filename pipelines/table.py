"""The table of an encoder: systems by tasks with intervals, what each costs, and which is above which, and how surely.

Tasks are read once, systems loaded one after the other; vectors are kept on disk by fingerprint, so a run that was
interrupted, or one with another task, encodes only what is new. With `workers` texts are encoded over Ray.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines._systems import SystemConfig, anywhere, open_system, require_systems
from pipelines._tasks import TaskConfig, metric_of
from pipelines.report import Report
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.errors import UserError

if TYPE_CHECKING:
    from pipelines._vectors import Cost, KeptVectors
    from rayvec.evaluation.scores import Score

#: A system's scores by task.
Scores = dict[str, "Score"]
#: Below this a difference counts as more than chance.
SIGNIFICANT = 0.05


class TableConfig(Config):
    """What to measure on what, and where the table goes."""

    kind: Literal["table"] = "table"
    #: What systems without an encoder of their own are made of.
    encoder: str = "tiny"
    systems: tuple[SystemConfig, ...] = ()
    tasks: tuple[TaskConfig, ...] = ()
    #: The folder that relative places of tasks are in.
    root: str = ""
    #: Pairs of systems of which the first should be above the second: each is tested on every task.
    order: tuple[tuple[str, str], ...] = ()
    title: str = ""
    #: In which numbers encoders compute; see TextEncoder.load.
    dtype: str = "auto"
    #: Ray actors that encode; 0 encodes in this process.
    workers: int = Field(0, ge=0)
    #: The report, as JSON; table (.md) and chart (.png) go beside it.
    output: str = ""
    #: Where vectors and collected documents are kept; beside the output by default.
    cache: str = ""


def measure_table(config: TableConfig) -> Report:
    """Measure systems on tasks, with intervals, costs and tests of their order.

    Raises UserError when data, encoders or settings do not fit.
    """
    _require(config)
    started = time.monotonic()
    scores, details, costs, encoders = _measured(config)
    report = {
        "title": config.title or PurePosixPath(config.output).stem,
        "encoder": config.encoder,
        "tasks": [{**task.model_dump(mode="json"), "metric": metric_of(task)} for task in config.tasks],
        "systems": {name: {task: s.estimate.to_json() for task, s in row.items()} for name, row in scores.items()},
        "averages": {name: score.estimate.to_json() for name, score in _averages(config, scores).items()},
        "details": details,
        "costs": {name: cost.to_json() for name, cost in costs.items()},
        "fingerprints": encoders,
        "order": _order(config, scores),
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    _write(config, report)
    return report


def check_table(config: TableConfig) -> None:
    """Raise UserError for what `measure_table` would refuse of settings and data, its encoders yet to be trained."""
    from pipelines._scorers import prepare

    _require(config)
    for task in config.tasks:
        prepare(task, config.root, _cache(config))


def _require(config: TableConfig) -> None:
    if not config.output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")
    if not config.systems or not config.tasks:
        raise UserError("systems and tasks are required; start from a recipe (tiny.ablation), or give them by --config")
    require_systems(config.systems)
    _require_order(config)


def _cache(config: TableConfig) -> str:
    return config.cache or f"{config.output.removesuffix('.json')}.cache"


def _require_order(config: TableConfig) -> None:
    names = [system.name for system in config.systems]
    if unknown := [name for pair in config.order for name in pair if name not in names]:
        raise UserError(f"order: there is no system {unknown[0]!r}; there are {', '.join(names)}")
    tasks = [task.name for task in config.tasks]
    if repeated := sorted({name for name in tasks if tasks.count(name) > 1}):
        raise UserError(f"tasks: {repeated[0]!r} stands twice; give each its own name")


def _measured(
    config: TableConfig,
) -> tuple[dict[str, Scores], dict[str, Any], dict[str, Cost], dict[str, str]]:
    from pipelines._scorers import Subject, prepare

    cache = _cache(config)
    scorers = {task.name: prepare(task, config.root, cache) for task in config.tasks}
    by_name = {system.name: system for system in config.systems}
    scores: dict[str, Scores] = {}
    details: dict[str, Any] = {}
    costs: dict[str, Cost] = {}
    fingerprints: dict[str, str] = {}
    with _session(config):
        for system in config.systems:
            dense = by_name.get(system.dense)
            with _vectors(dense or system, config, uris.join(cache, "vectors")) as vectors:
                for task, score in scorers.items():
                    if (found := score(Subject(system, vectors, dense))) is not None:
                        scores.setdefault(system.name, {})[task], more = found
                        details.setdefault(system.name, {})[task] = more
                        sys.stderr.write(f"{system.name}: {task} {found[0].value:.3f}\n")
                if vectors is not None:
                    costs[system.name] = vectors.cost
                    fingerprints[system.name] = vectors.encoder.fingerprint.short
    return scores, details, costs, fingerprints


def _session(config: TableConfig) -> contextlib.AbstractContextManager[None]:
    if not config.workers:
        return contextlib.nullcontext()
    from pipelines._ray import ray_session

    return ray_session()


@contextlib.contextmanager
def _vectors(system: SystemConfig, config: TableConfig, folder: str) -> Iterator[KeptVectors | None]:
    """The vectors of a system that has some, made here or by workers that are given back after the block."""
    from functools import partial

    from pipelines._vectors import KeptVectors, workers
    from rayvec.modeling.references import canonical

    if not system.has_vectors:
        yield None
        return
    make = partial(open_system, anywhere(system), canonical(config.encoder), config.dtype)
    with workers(make, config.workers) as pool:
        yield KeptVectors(make(), system.name, folder, pool)


def _averages(config: TableConfig, scores: Mapping[str, Scores]) -> dict[str, Score]:
    """The mean over all tasks, of systems that took part in all."""
    from rayvec.evaluation.scores import mean_of

    names = [task.name for task in config.tasks]
    return {s: mean_of([row[name] for name in names]) for s, row in scores.items() if set(names) <= set(row)}


def _order(config: TableConfig, scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Each expected order on each task and on the average: the difference, its interval, p, and whether it holds."""
    averages = _averages(config, scores)
    found = []
    for higher, lower in config.order:
        a, b = scores.get(higher, {}), scores.get(lower, {})
        pairs = [(name, a[name], b[name]) for name in a if name in b]
        if len(pairs) > 1 and {higher, lower} <= averages.keys():
            pairs.append(("average", averages[higher], averages[lower]))
        found += [{"higher": higher, "lower": lower, "task": name, **_judged(x, y)} for name, x, y in pairs]
    return found


def _judged(a: Score, b: Score) -> dict[str, Any]:
    from rayvec.evaluation.scores import difference

    result = difference(a, b)
    verdict = "not clear"
    if result.p_value < SIGNIFICANT:
        verdict = "holds" if result.difference > 0 else "reversed"
    return {**result.to_json(), "verdict": verdict}


def render(report: Report) -> str:
    """The report as people read it: the table, the costs, and what of the expected order holds."""
    from rayvec.evaluation.report import markdown, table
    from rayvec.evaluation.statistics import Estimate

    metrics = {task["name"]: f"{task['name']} ({task['metric']})" for task in report["tasks"]}
    systems = {
        name: {
            **{label: Estimate(**row[task]) for task, label in metrics.items() if task in row},
            **({"average": Estimate(**report["averages"][name])} if name in report["averages"] else {}),
        }
        for name, row in report["systems"].items()
    }
    if len(metrics) == 1:
        systems = {name: {m: e for m, e in row.items() if m != "average"} for name, row in systems.items()}
    costs = [
        [name, f"{c['tokens']:,}", f"{c['seconds']:,.1f}", f"{c['cpu_seconds']:,.1f}", _rate(c)]
        for name, c in report["costs"].items()
    ]
    header = ["system", "tokens", "seconds", "CPU seconds", "tokens/s"]
    parts = [f"{report['title']}; mean [95 % interval]", table(systems), markdown(header, costs)]
    return "\n\n".join([*parts, *([order_table(report["order"])] if report["order"] else [])])


def _rate(cost: Mapping[str, float]) -> str:
    return f"{cost['tokens'] / cost['seconds']:,.0f}" if cost["seconds"] else ""


def order_table(order: list[dict[str, Any]]) -> str:
    """A row an expected order and task: by how much, how surely, and whether it holds."""
    from rayvec.evaluation.report import markdown, p_value

    rows = [
        [
            f"{row['higher']} > {row['lower']}",
            row["task"],
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            p_value(row["p_value"]),
            row["verdict"],
        ]
        for row in order
    ]
    return markdown(["expected", "task", "difference", "p", "verdict"], rows)


def _write(config: TableConfig, report: Report) -> None:
    """The JSON last: where it is there, all the rest is."""
    from rayvec.evaluation.report import grouped_bars
    from rayvec.evaluation.statistics import Estimate

    stem = config.output.removesuffix(".json")
    storage.write_bytes(f"{stem}.md", (render(report) + "\n").encode())
    systems = {name: {t: Estimate(**e) for t, e in row.items()} for name, row in report["systems"].items()}
    grouped_bars(systems, [task.name for task in config.tasks], report["title"], f"{stem}.png")
    storage.write_json(config.output, report)
