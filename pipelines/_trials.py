"""The advisor's measurements: exact search in fewer dimensions, and every point of the grid as a Ray task.

Knows the sample's place in Ray's object store, and who judges what is found. Knows no files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines._advice import Point
from rayvec.errors import RayvecError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipelines._advise_config import AdviseConfig
    from rayvec.indexing.pca import Axes, Projection
    from rayvec.indexing.reductions import Kept
    from rayvec.indexing.samples import Sample
    from rayvec.indexing.trials import Trial

#: Queries taken out of the sample, for recall and for speed.
HELD_OUT = 256
#: BLAS in one thread, as a served query has it; FAISS is told its threads call by call.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Questions:
    """Queries with known answers: ids, vectors [A, D], and the judged documents of each."""

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    qrels: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Setting:
    """What all trials share: the sample's place in the object store, its rows' names for the judges, and the totals."""

    config: AdviseConfig
    dim: int
    count: int
    sampled: int
    held_out: int
    depth: int
    sample: Any
    axes: Any
    questions: Questions | None
    names: list[str]


def compare_dimensions(setting: Setting, dims: Sequence[int]) -> tuple[list[dict[str, Any]], list[float]]:
    """Exact search in fewer dimensions, each way; and the curve of explained variance."""
    from rayvec.indexing import reductions, tasks

    begin = time.perf_counter()
    numbers = sorted({*dims, *reductions.DIMENSIONS}, reverse=True)
    tried = reductions.smaller(setting.dim, setting.sampled - setting.held_out, numbers)
    kept, explained = tasks.one(_compared, setting.sample, setting.axes, tried, setting.depth, cpus=tasks.node_cpus())
    say(f"{len(tried)} smaller numbers of dimensions compared in {time.perf_counter() - begin:.1f} s")
    rows = [{"way": k.way, "dimensions": k.dimensions, "recall@10": round(k.recall, 4)} for k in kept]
    if setting.questions is not None:
        rows = [{**row, "ndcg@10": round(_ndcg(setting, k.found), 4)} for row, k in zip(rows, kept, strict=True)]
    return rows, explained


def _compared(sample: Sample, axes: Axes, dims: list[int], depth: int) -> tuple[list[Kept], list[float]]:
    from rayvec.indexing import reductions

    return reductions.compare(sample, axes, dims, reductions.WAYS, depth), axes.explained.tolist()


def _ndcg(setting: Setting, found: npt.NDArray[np.int64]) -> float:
    from rayvec.evaluation.retrieval import evaluate

    assert setting.questions is not None
    once = documents_once(found, setting.names)
    per_query = evaluate(once, setting.names, setting.questions.ids, setting.questions.qrels)
    return float(per_query["ndcg@10"].mean())


def documents_once(found: npt.NDArray[np.int64], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Rows of a document that stands higher already are taken out: its best window counts."""
    import numpy as np

    once = np.full_like(found, -1)
    for i, rows in enumerate(found.tolist()):
        # Later rows go in first, and are replaced by those that stand higher.
        best = {names[row]: row for row in reversed(rows) if row >= 0}
        kept = sorted(best.values(), key=rows.index)
        once[i, : len(kept)] = kept
    return once


def measure(setting: Setting, dims: Sequence[int]) -> tuple[list[Point], list[dict[str, str]]]:
    """Every point of the grid: those that could be measured, and why the others could not."""
    from rayvec.indexing import grid

    config = setting.config
    templates = config.factories or grid.FACTORIES
    points: list[Point] = []
    failed: list[dict[str, str]] = []
    for way, number in [("", setting.dim), *((way, number) for way in config.ways for number in dims)]:
        begin = time.perf_counter()
        for template, outcome in _trials(setting, way, number, templates):
            if isinstance(outcome, Exception):
                failed.append({"point": f"{number} {way} {template}", "error": _one_line(outcome)})
            else:
                points.append(_point(setting, way, number, template, outcome))
        say(f"{number} dimensions {way}: {len(templates)} indices tried in {time.perf_counter() - begin:.1f} s")
    return points, failed


def _trials(
    setting: Setting, way: str, number: int, templates: Sequence[str]
) -> Iterator[tuple[str, Trial | Exception]]:
    """One task a point, a node's cores each, so that what is timed runs alone on its node."""
    from rayvec.indexing import tasks

    cpus = tasks.node_cpus()
    reduced = tasks.start(_reduced, setting.sample, setting.axes, way, number, cpus=cpus)
    config = setting.config
    work = [
        (setting.sample, reduced, template, setting.count, config.recall_target, setting.depth, config.seed, cpus)
        for template in templates
    ]
    yield from zip(templates, tasks.outcomes(_trial, work, cpus=cpus, environment=ONE_THREAD), strict=True)


def _reduced(sample: Sample, axes: Axes, way: str, number: int) -> tuple[Projection | None, Any]:
    """The projection and what it makes of the sample; nothing where all stay: the sample is there already."""
    from rayvec.indexing import reductions

    if not way:
        return None, None
    projection = reductions.project(way, number, sample, axes)
    return projection, projection(sample.vectors)


def _trial(
    sample: Sample, reduced: tuple[Projection | None, Any], template: str, count: int, target: float, depth: int,
    seed: int, cpus: int,
) -> Trial:  # fmt: skip
    from rayvec.indexing import tasks, trials

    projection, projected = reduced
    vectors_NR = sample.vectors if projected is None else projected
    return trials.run(sample, vectors_NR, projection, template, count, target, depth, seed, threads=tasks.threads(cpus))


def _point(setting: Setting, way: str, number: int, template: str, trial: Trial) -> Point:
    from rayvec.indexing import grid

    slower = grid.slowdown(trial.kind, setting.sampled, setting.count)
    return Point(
        way=way,
        dimensions=number,
        template=template,
        factory=grid.named(template, setting.count, number),
        bytes_per_vector=round(trial.bytes / setting.count, 2),
        recall=round(trial.recall, 4),
        ndcg=round(_ndcg(setting, trial.found), 4) if setting.questions is not None else None,
        queries_per_second=round(trial.queries_per_second, 1),
        queries_per_second_of_all=round(trial.queries_per_second / slower, 1),
        build_seconds=round(trial.build_seconds, 2),
        search=trial.search,
        fidelity=round(trial.fidelity, 4),
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, RayvecError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"


def say(line: str) -> None:
    sys.stderr.write(f"advise: {line}\n")
