"""Advise: which dimensions and which index for these embeddings, measured on a sample before anything is built.

Each point of the grid (dimensions × index) is a Ray task that builds, tunes and times it; one that fails is reported
and the others go on. The sample lies once in the object store, and beside it the sample in one number of dimensions.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines import _advice
from pipelines._advice import Point
from pipelines._advise_config import AdviseConfig
from pipelines._ray import ray_session
from pipelines._trials import HELD_OUT, Questions, Setting, compare_dimensions, measure, say
from pipelines.report import Report
from rayvec import storage, uris
from rayvec.errors import MismatchError, UserError

if TYPE_CHECKING:
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing.corpus import Corpus

#: Dimensions that are tried beside all of them, as far as the vectors have more.
DIMENSIONS = (512, 256, 128)
#: Results that are judged by nDCG@10, one more since a query may find itself; of windows more are asked for, since
#: several may be of one document.
DEPTH, DEPTH_OF_WINDOWS = 11, 50
JSON, PAGE, PICTURE, CURVE = "advice.json", "advice.md", "advice.png", "dimensions.png"


def advise(config: AdviseConfig) -> Report:
    """Advise on dimensions and index: measure a grid of both on a sample, and recommend the cheapest that is good.

    Raises UserError, MismatchError (queries of another encoder), VerificationError (a damaged part) or StorageError.
    """
    from rayvec.data.embeddings import EmbeddingsDataset

    started = time.monotonic()
    _require(config)
    dataset = EmbeddingsDataset.open(config.embeddings)
    if not dataset.count:
        raise UserError(f"{config.embeddings} holds 0 rows; embed some documents first")
    dims = _dims(config, dataset.dim)
    questions = _questions(config, dataset) if config.qrels else None
    with ray_session():
        setting = _setting(config, dataset, questions)
        kept, explained = compare_dimensions(setting, dims)
        points, failed = measure(setting, dims)
    report = _report(setting, dataset, kept, _advice.marked(points), failed, time.monotonic() - started)
    _write(setting, report, points, kept, explained)
    return report


def _require(config: AdviseConfig) -> None:
    for key in ("embeddings", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is required; give a folder with --set {key}=DIR")
    for key, other in (("queries", "qrels"), ("qrels", "queries")):
        if getattr(config, key) and not getattr(config, other):
            raise UserError(f"{key} = {getattr(config, key)} needs {other} too; give it with --set {other}=…")


def _dims(config: AdviseConfig, dim: int) -> list[int]:
    """The numbers of dimensions to try beside all, from large to small."""
    too_many = [number for number in config.dims if number >= dim]
    if too_many:
        raise UserError(f"dims = {too_many[0]}: the vectors have {dim}; give numbers below that (all are always tried)")
    return sorted({number for number in config.dims or DIMENSIONS if number < dim}, reverse=True)


def _questions(config: AdviseConfig, dataset: EmbeddingsDataset) -> Questions:
    """The judged queries whose vectors are there."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from rayvec.data.embeddings import EmbeddingsDataset, vectors
    from rayvec.evaluation.beir import read_qrels
    from rayvec.indexing.vectors import unit
    from rayvec.schema import ID

    asked = EmbeddingsDataset.open(config.queries)
    dataset.fingerprint.require(asked.fingerprint, mine="the embeddings", theirs="the queries")
    if asked.dim != dataset.dim:
        raise MismatchError(f"the queries have {asked.dim} dimensions and the embeddings {dataset.dim}; embed alike")
    qrels = read_qrels(config.qrels)
    there = {id_ for table in asked.iter_tables([ID]) for id_ in table[ID].to_pylist()}
    chosen = pa.array(_drawn(sorted(there & qrels.keys()), config.max_queries, config.seed), pa.string())
    ids: list[str] = []
    found = [np.empty((0, asked.dim), np.float32)]
    for table in asked.iter_tables():
        wanted = table.filter(pc.is_in(table[ID], value_set=chosen)).combine_chunks()
        ids += wanted[ID].to_pylist()
        found.append(vectors(wanted) if wanted.num_rows else found[0])
    if not ids:
        raise UserError(f"no query of {config.qrels} is in {config.queries}; check that the ids are the same")
    return Questions(ids, unit(np.concatenate(found)), {name: qrels[name] for name in ids})


def _drawn(names: list[str], most: int, seed: int) -> list[str]:
    import numpy as np

    if len(names) <= most:
        return names
    return [names[i] for i in np.random.default_rng(seed).choice(len(names), most, replace=False)]


def _setting(config: AdviseConfig, dataset: EmbeddingsDataset, questions: Questions | None) -> Setting:
    """Draw the sample, put it into the object store, and find its true neighbours and axes."""
    import numpy as np
    import ray

    from rayvec.indexing import reductions, samples, tasks
    from rayvec.indexing.corpus import Corpus, columns_of, take
    from rayvec.indexing.vectors import sample_rows
    from rayvec.schema import WINDOW

    corpus = Corpus.of(dataset)
    drawn = sample_rows(corpus.count, config.sample, config.seed)
    judged, names, questions = _judged(corpus, questions)
    rows = np.union1d(drawn, np.array(judged, np.int64))
    held_out = drawn[sample_rows(len(drawn), min(HELD_OUT, max(1, len(drawn) // 4)), config.seed + 1)]
    say(f"sampling {len(rows):,} of {corpus.count:,} vectors")
    vectors_ND = ray.put(take(corpus, rows))
    own = np.searchsorted(rows, held_out)
    asked = questions.vectors if questions else None
    sample = tasks.start(samples.sample_of, vectors_ND, own, asked, cpus=tasks.node_cpus())
    return Setting(
        config=config,
        dim=dataset.dim,
        count=corpus.count,
        sampled=len(rows),
        held_out=len(held_out),
        depth=DEPTH_OF_WINDOWS if columns_of(corpus, [WINDOW]) else DEPTH,
        sample=sample,
        axes=tasks.start(reductions.axes_of, sample, cpus=tasks.node_cpus()),
        questions=questions,
        names=[names.get(int(row), f"row {row}") for row in rows],
    )


def _judged(corpus: Corpus, questions: Questions | None) -> tuple[list[int], dict[int, str], Questions | None]:
    """The rows of the judged documents; the names of these and of documents that are queries, by row; the queries.

    Queries of which no relevant document is there are left out.
    """
    from rayvec.indexing.judged import rows_of

    if questions is None:
        return [], {}, None
    judged = {name for judgements in questions.qrels.values() for name in judgements}
    names = rows_of(corpus.parts, frozenset(judged | set(questions.ids)))
    there = judged & set(names.values())
    answered = [
        any(score > 0 and name in there for name, score in questions.qrels[query].items()) for query in questions.ids
    ]
    if not any(answered):
        raise UserError(
            "no document that the qrels call relevant is in the embeddings; check that the ids are the same"
        )
    ids = [query for query, flag in zip(questions.ids, answered, strict=True) if flag]
    rows = [row for row, name in names.items() if name in judged]
    return rows, names, Questions(ids, questions.vectors[answered], {query: questions.qrels[query] for query in ids})


def _report(
    setting: Setting, dataset: EmbeddingsDataset, kept: list[dict[str, Any]], points: list[Point],
    failed: list[dict[str, str]], seconds: float,
) -> Report:  # fmt: skip
    config = setting.config
    if not points:
        raise UserError(f"no point of the grid could be measured; the first failed so: {failed[0]['error']}")
    best = _advice.recommended(points, config.recall_target)
    chosen = best or max(points, key=lambda point: point.recall)
    return {
        "vectors": setting.count,
        "dimensions": setting.dim,
        "sample": setting.sampled,
        "queries": setting.held_out,
        "judged_queries": len(setting.questions.ids) if setting.questions else 0,
        "recall_target": config.recall_target,
        "reached": best is not None,
        "recommended": chosen.to_json(),
        "bytes": round(chosen.bytes_per_vector * setting.count),
        "cores": os.cpu_count(),
        "points": [point.to_json() for point in points],
        "failed": failed,
        "fewer_dimensions": kept,
        "seconds": round(seconds, 1),
        "output": config.output,
        "next": _advice.command(config, str(dataset.manifest["encoder"]), chosen),
    }


def _write(
    setting: Setting, report: Report, points: list[Point], kept: list[dict[str, Any]], explained: list[float]
) -> None:
    from rayvec.evaluation import trade_offs

    config = setting.config
    place = partial(uris.join, config.output)
    storage.write_json(place(JSON), report)
    storage.write_bytes(place(PAGE), _advice.page(report).encode())
    marked = _advice.marked(points)
    best = next((i for i, point in enumerate(marked) if point.to_json() == report["recommended"]), None)
    title = f"{setting.count:,} vectors of {setting.dim} dimensions, measured on {setting.sampled:,}"
    trade_offs.draw_choices(
        _advice.choices(marked), config.recall_target, best, "recall@10 against exact search", title, place(PICTURE)
    )
    recalls: dict[str, dict[int, float]] = {}
    for row in kept:
        if row["way"]:
            recalls.setdefault(row["way"], {})[row["dimensions"]] = row["recall@10"]
    trade_offs.draw_dimensions(explained, recalls, place(CURVE))


def render(report: Report) -> str:
    """What the shell shows: the points worth having, and the recommendation."""
    return _advice.summary(report)
