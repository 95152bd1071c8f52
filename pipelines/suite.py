"""MTEB: an encoder on tasks by name or a named suite, by mteb's own runner, beside the rows of LLM2Vec's tables.

A task's data is that of the Hugging Face cache (or the hub, where the network allows), or a local place. What was
measured is kept by the encoder's fingerprint, so an interrupted run goes on with the next task.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines._systems import SystemConfig, anywhere, open_system
from pipelines.report import Report
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.evaluation.mteb_model import MtebPrompts
from rayvec.evaluation.mteb_suites import COLUMNS, KINDS, PAPER_POOLING, PAPER_TABLE, POOLINGS, SUITES, tasks_of

if TYPE_CHECKING:
    from pipelines._vectors import KeptVectors


class SuiteConfig(Config):
    """Which encoder on which tasks of MTEB, read how, and where the result goes."""

    kind: Literal["mteb"] = "mteb"
    #: The encoder and how it is read; see SystemConfig. Its name is its row's.
    system: SystemConfig = SystemConfig(name="ours", encoder="tiny")
    #: mteb-paper-15 (the paper's ablations) or mteb-paper-56 (its tables); empty where tasks are named one by one.
    suite: Literal["", "mteb-paper-15", "mteb-paper-56"] = ""
    #: MTEB's names of tasks.
    tasks: tuple[str, ...] = ()
    #: Local data of tasks by name: a BEIR folder, a csv of pairs, a folder of train and test, …
    local: Mapping[str, str] = {}
    #: Where data is not there: refuse the run, or leave the task out and say so.
    absent: Literal["refuse", "leave_out"] = "refuse"
    prompts: MtebPrompts = MtebPrompts()
    #: Ray actors that encode; 0 encodes in this process.
    workers: int = Field(0, ge=0)
    #: The report, as JSON; the table (.md) goes beside it.
    output: str = ""
    #: Where vectors and results are kept; beside the output by default.
    cache: str = ""


def measure_suite(config: SuiteConfig) -> Report:
    """Run an encoder through MTEB's tasks. Raises UserError when a task's data is not there, naming the cure."""
    from rayvec.evaluation.mteb_tasks import get_task

    if not config.output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")
    names = _names(config)
    started = time.monotonic()
    tasks = {name: get_task(name, config.local.get(name, "")) for name in names}
    scores, absent, cost = _measured(config, tasks)
    report = {
        "suite": config.suite,
        "system": config.system.model_dump(mode="json"),
        "prompts": config.prompts.model_dump(mode="json"),
        "pooling": _pooling(config),
        "tasks": scores,
        "absent": absent,
        "local": {name: path for name, path in config.local.items() if name in tasks},
        "by_kind": _by_kind(scores),
        "average": _average(scores),
        "cost": cost,
        "seconds": round(time.monotonic() - started, 2),
        "output": config.output,
    }
    storage.write_bytes(f"{config.output.removesuffix('.json')}.md", (render(report) + "\n").encode())
    storage.write_json(config.output, report)
    return report


def _names(config: SuiteConfig) -> tuple[str, ...]:
    if not config.system.has_vectors:
        raise UserError("system.kind: MTEB's tasks need vectors; use encoder or echo")
    if not config.suite and not config.tasks:
        raise UserError(f"suite is required; give --suite {' or '.join(SUITES)}, or --set 'tasks=[…]'")
    names = (*(tasks_of(config.suite) if config.suite else ()), *config.tasks)
    if unknown := sorted(config.local.keys() - set(names)):
        raise UserError(f"local.{unknown[0]}: that task is not measured; name it in tasks")
    return tuple(dict.fromkeys(names))


def _pooling(config: SuiteConfig) -> str:
    return config.system.pooling or "its own"


def _measured(config: SuiteConfig, tasks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
    """The scores of each task, why others were left out, and what encoding cost. All data is looked for first."""
    from functools import partial

    from pipelines._vectors import KeptVectors, workers
    from rayvec.evaluation.mteb_tasks import load

    absent: dict[str, str] = {}
    for name, task in tasks.items():
        try:
            load(task)
        except UserError as error:
            if config.absent == "refuse":
                raise
            absent[name] = str(error)
    if len(absent) == len(tasks):
        raise UserError(f"no task's data is there; {next(iter(absent.values()))}")
    make = partial(open_system, anywhere(config.system), config.system.encoder or "tiny")
    cache = config.cache or f"{config.output.removesuffix('.json')}.cache"
    with workers(make, config.workers) as pool:
        vectors = KeptVectors(make(), config.system.name, uris.join(cache, "vectors"), pool)
        scores = {}
        for name, task in tasks.items():
            if name not in absent:
                scores[name] = _one(config, name, task, vectors, uris.join(cache, "mteb"))
                sys.stderr.write(f"{name}: {scores[name]['main_score']:.4f}\n")
    return scores, absent, vectors.cost.to_json()


def _one(config: SuiteConfig, name: str, task: Any, vectors: KeptVectors, folder: str) -> dict[str, Any]:
    from rayvec.evaluation.mteb_model import MtebModel
    from rayvec.evaluation.mteb_tasks import data_of, run

    fingerprint = vectors.encoder.fingerprint
    data = data_of(task)
    key = storage.sha256_bytes("|".join([config.local.get(name, ""), config.prompts.digest(), *data]).encode())[:12]
    kept = uris.join(folder, f"{fingerprint.short}-{name}-{key}.json")
    # What lies in a local place may change without notice; the hub's data has a revision, which is in the key.
    if name not in config.local and storage.size(kept) >= 0:
        return storage.read_json(kept)
    model = MtebModel(vectors, name=config.system.name, fingerprint=fingerprint, prompts=config.prompts)
    scores = run(model, task)
    read = sorted(text or "" for text in model.instructions.get(name, set()))
    found = {
        "kind": task.metadata.type,
        "metric": task.metadata.main_score,
        "split": task.eval_splits[0],
        "subset": ", ".join(task.hf_subsets),
        "main_score": scores["main_score"],
        "instructions": read,
        "scores": scores,
    }
    storage.write_json(kept, found)
    return found


def _by_kind(scores: Mapping[str, Any]) -> dict[str, float]:
    kinds = {kind: [row["main_score"] for row in scores.values() if row["kind"] == kind] for kind in KINDS}
    return {kind: float(np.mean(values)) for kind, values in kinds.items() if values}


def _average(scores: Mapping[str, Any]) -> float | None:
    return float(np.mean([row["main_score"] for row in scores.values()])) if scores else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def render(report: Report) -> str:
    """The report as people read it: each task, and our row beside the paper's. Values times 100, as in its tables."""
    from rayvec.evaluation.report import markdown

    rows = [
        [name, row["kind"], row["metric"], f"{100 * row['main_score']:.2f}"] for name, row in report["tasks"].items()
    ]
    parts = [markdown(["task", "kind", "metric", "score"], rows)]
    if report["absent"]:
        parts.append(f"left out, for their data is not here: {', '.join(report['absent'])}")
    if report["suite"]:
        parts.append(_beside_the_paper(report))
    return "\n\n".join(parts)


def _beside_the_paper(report: Report) -> str:
    wanted = tasks_of(report["suite"])
    have = sum(name in report["tasks"] for name in wanted)
    note = "" if have == len(wanted) else f" ({have} of {len(wanted)} tasks: not to be compared)"
    name = report["system"]["name"]
    # Tasks that were named besides the suite are in the report's own average, and not in the row beside the paper's.
    scores = {task: row for task, row in report["tasks"].items() if task in wanted}
    if report["suite"] == "mteb-paper-15":
        return _table_15(scores, f"{name}{note}", report["pooling"])
    return _table_56(scores, f"{name}{note}")


def _table_15(scores: Mapping[str, Any], name: str, pooling: str) -> str:
    """The average under our pooling; the paper has all three for each kind of encoder."""
    from rayvec.evaluation.report import markdown

    places = {"last_token": 0, "mean": 1, "weighted_mean": 2}
    # What an encoder says of itself is mean in every recipe of ours.
    ours = places.get(pooling, 1)
    rows = [[name, *(_cell(_average(scores)) if place == ours else "" for place in range(3))]]
    rows += [
        [f"{model} {kind}", *(f"{value:.2f}" for value in values)]
        for model, kinds in PAPER_POOLING.items()
        for kind, values in kinds.items()
    ]
    return markdown(["average of 15 sets", *POOLINGS], rows)


def _table_56(scores: Mapping[str, Any], name: str) -> str:
    from rayvec.evaluation.report import markdown

    by_kind = _by_kind(scores)
    rows = [[name, *(_cell(by_kind.get(kind)) for kind in KINDS), _cell(_average(scores))]]
    rows += [[row, *(f"{value:.2f}" for value in values)] for row, values in PAPER_TABLE.items()]
    return markdown(["average of 56 sets", *COLUMNS], rows)
