"""Measuring retrieval: dense (exact), lexical and hybrid search on a task with judgements, with intervals and p-values.

The corpus is gone through once; each batch is encoded once, whatever number of systems looks at its vectors. Memory
holds the rankings, the lexical index and what is encoded at once. With `workers` the corpus is encoded over Ray.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from pipelines._dense import DenseSearches
from pipelines.report import Report
from rayvec import storage
from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.indexing.hybrid import DENSE_WEIGHT

if TYPE_CHECKING:
    from pipelines._vectors import Pool
    from rayvec.data.source_config import SourceConfig
    from rayvec.evaluation.beir import Task
    from rayvec.evaluation.retrieval import PerQuery
    from rayvec.indexing.ranking import Ranking
    from rayvec.modeling.encoder import Encoder

System = Literal["dense", "instruction", "lexical", "hybrid"]

#: What the intervals and tests are told for in the table; all metrics are in the file.
MAIN_METRIC = "ndcg@10"
#: Pairs of systems that are compared, where both were measured: is the first better than the second?
COMPARISONS = (("hybrid", "lexical"), ("hybrid", "dense"), ("dense", "lexical"), ("instruction", "dense"))
#: What of the configuration moves a number, beside data and encoder.
_SETTINGS = {"instruction", "fusion", "dense_weight", "k", "dimensions", "k1", "b", "max_queries"}


class MeasureConfig(Config):
    """What to measure, on what, and where the result goes."""

    #: "hash", "tiny", a folder or URI of an encoder, or a Hugging Face id. Not loaded where only lexical is measured.
    encoder: str = "tiny"
    #: A folder in BEIR's layout, or a suite: pydocs (summary line → rest of the docstring, on held-out documents),
    #: or a Parquet file of documents for the same question.
    data: str = ""
    split: str = "test"
    #: The report, as JSON; table (.md), chart (.png) and the values of each query (.queries.jsonl) go beside it.
    output: str = ""
    #: dense: queries without an instruction; instruction: with the encoder's for queries, or the one given here (beside
    #: dense, left out where there is none);
    #: hybrid: lexical and dense fused, the dense side with the instruction where there is one, as in serving.
    systems: tuple[System, ...] = Field(("dense", "instruction", "lexical", "hybrid"), min_length=1)
    instruction: str | None = None
    #: How hybrid puts the two together: by reciprocal rank, or by scores brought to [0, 1].
    fusion: Literal["rrf", "weighted"] = "weighted"
    #: What the dense ranking counts in hybrid, where the lexical one counts 1.
    dense_weight: float = Field(DENSE_WEIGHT, ge=0)
    #: Results that each system gives; at least 100, since recall@100 is measured.
    k: int = Field(100, ge=100)
    #: Shorter vectors to measure too: the first so many dimensions.
    dimensions: tuple[PositiveInt, ...] = ()
    k1: float = Field(0.9, ge=0)
    b: float = Field(0.4, ge=0, le=1)
    #: Documents encoded at once.
    batch: PositiveInt = 1024
    #: Ray actors that encode the corpus, each on a GPU where the cluster has some; 0 encodes in this process.
    workers: int = Field(0, ge=0)
    #: Ask only the first so many queries; of docstrings, take only so many documents, spread over all.
    max_queries: PositiveInt | None = None
    #: pydocs: the folder that keeps the collected documents; beside the output by default.
    cache: str = ""


def measure(config: MeasureConfig) -> Report:
    """Measure retrieval on a BEIR folder or a named suite, and say how sure the numbers are.

    Raises UserError when the data, the encoder or the settings do not fit.
    """
    if not config.output.endswith(".json"):
        raise UserError("output is required; give a file with --set output=FILE.json")
    started = time.monotonic()
    task = load_task(config)
    encoder = _encoder(config)
    with _workers(config) as pool:
        rankings, ids = _rank(config, task, encoder, pool)
    per_query = _evaluate(task, rankings, ids)
    report = _report(config, task, encoder, per_query, ids, time.monotonic() - started)
    _write(config, task, per_query, report)
    return report


def load_task(config: MeasureConfig) -> Task:
    """The task that `data` names. Raises UserError, also where none of its documents can be used."""
    from dataclasses import replace

    from rayvec.evaluation.beir import load_beir

    if not config.data:
        raise UserError(f"data is required; give a folder in BEIR's layout, or a suite: {', '.join(SUITES)}")
    suite = _docstrings if config.data.endswith(".parquet") else SUITES.get(config.data)
    task = load_beir(config.data, config.split) if suite is None else suite(config)
    if not any(ids for ids, _ in task.corpus.batches()):
        why = left_out_note(task.corpus.left_out) or "its corpus is empty"
        raise UserError(f"{config.data} has no document to search ({why}); give one of documents with an id and a text")
    if config.max_queries is None:
        return task
    return replace(task, query_ids=task.query_ids[: config.max_queries], queries=task.queries[: config.max_queries])


def left_out_note(left_out: Mapping[str, int]) -> str:
    """The documents that could not be used, by reason, in a line; empty where there are none."""
    from rayvec.data.units import REASONS

    reasons = "; ".join(f"{count:,} {reason}, {REASONS[reason]}" for reason, count in left_out.items())
    return f"left out of the corpus: {reasons}" if reasons else ""


def _pydocs(config: MeasureConfig) -> Task:
    from rayvec.data.sources import SourceConfig

    return _held_out(config, SourceConfig(kind="pydocs"), "pydocs")


def _docstrings(config: MeasureConfig) -> Task:
    from rayvec.data.sources import SourceConfig

    return _held_out(config, SourceConfig(path=config.data), PurePosixPath(config.data).name)


def _held_out(config: MeasureConfig, documents: SourceConfig, name: str) -> Task:
    """Which held-out document does this summary line belong to? Only the rest of each docstring is searched."""
    import pyarrow as pa

    from pipelines._corpus import tables
    from rayvec.data.pairs import Pair, docstring_pairs, is_held_out
    from rayvec.evaluation.beir import ListedCorpus, Task

    parts = (
        table.select(["id", "text"]) for table in tables(documents, config.cache or f"{_stem(config.output)}.cache")
    )
    # The held-out twentieth alone is kept: of a large corpus, all would not fit into memory.
    held_out = [
        part.filter(pa.array([is_held_out(id_) for id_ in part["id"].to_pylist()], pa.bool_())) for part in parts
    ]
    first: dict[str, Pair] = {}
    for pair in docstring_pairs(pa.concat_tables(held_out), held_out=True):
        first.setdefault(pair.id, pair)  # of an id that is repeated, as `jobs.embed` keeps it
    pairs = list(first.values())
    if not pairs:
        raise UserError(f"{name} has no held-out documents with a summary and a rest; give more documents")
    if config.max_queries is not None and len(pairs) > config.max_queries:
        pairs = [pairs[i * len(pairs) // config.max_queries] for i in range(config.max_queries)]
    ids = [pair.id for pair in pairs]
    qrels = {id_: {id_: 1} for id_ in ids}
    return Task(name, ListedCorpus(ids, [pair.positive for pair in pairs]), ids, [p.query for p in pairs], qrels)


SUITES: dict[str, Callable[[MeasureConfig], Task]] = {"pydocs": _pydocs}


def _workers(config: MeasureConfig) -> contextlib.AbstractContextManager[Pool | None]:
    from pipelines._vectors import workers
    from rayvec.modeling.encoder import load_encoder
    from rayvec.modeling.references import canonical

    return workers(partial(load_encoder, canonical(config.encoder)), config.workers if _encodes(config) else 0)


def _encodes(config: MeasureConfig) -> bool:
    return set(config.systems) != {"lexical"}


def _encoder(config: MeasureConfig) -> Encoder | None:
    if not _encodes(config):
        return None
    from rayvec.modeling.encoder import load_encoder

    encoder = load_encoder(config.encoder)
    if max(config.dimensions, default=0) > encoder.dim:
        raise UserError(
            f"dimensions = {max(config.dimensions)}: the encoder's vectors have {encoder.dim}; ask for fewer"
        )
    return encoder


def _rank(
    config: MeasureConfig, task: Task, encoder: Encoder | None, pool: Pool | None
) -> tuple[dict[str, Ranking], list[str]]:
    """The ranking of each system, and the ids that their rows stand for."""
    from rayvec.evaluation.retrieval import own_places

    depth = config.k + 1  # a query may find itself
    dense = None
    if encoder is not None:
        forms = _query_forms(config, encoder)
        dense = DenseSearches.over(task, encoder, forms, config.dimensions, depth, pool)
    ids: list[str] = []
    texts = _texts(config, task, dense, ids)
    rankings: dict[str, Ranking] = {}
    if "lexical" in config.systems or "hybrid" in config.systems:
        from rayvec.indexing.lexical import Lexical

        rankings["lexical"] = Lexical.build(texts, k1=config.k1, b=config.b).search(task.queries, depth)
    else:
        for _ in texts:
            pass
    if dense is not None:
        rankings |= dense.rankings()
    for name, found in rankings.items():
        own_QK = own_places(found.rows, ids, task.query_ids, task.qrels)
        rankings[name] = found.without(own_QK).top(config.k)
    return _fused(config, rankings), ids


def _query_forms(config: MeasureConfig, encoder: Encoder) -> dict[str, str | None]:
    """What stands before the queries, by system: nothing, and the instruction if there is one.

    Raises UserError where there is none, and nothing beside it shows that its system is the same as dense.
    """
    instruction = config.instruction or encoder.instructions.get("query")
    if instruction is None:
        if "instruction" in config.systems and "dense" not in config.systems:
            raise UserError(
                f"systems: {config.encoder} has no instruction for queries; give one with --set instruction=…, or "
                "measure dense"
            )
        return {"dense": None}
    wanted = {"dense": None, "instruction": instruction}
    if "hybrid" in config.systems or {"dense", "instruction"} <= set(config.systems):
        return wanted
    return {name: form for name, form in wanted.items() if name in config.systems}


def _texts(config: MeasureConfig, task: Task, dense: DenseSearches | None, ids: list[str]) -> Iterator[str]:
    """The corpus text by text, and on the way: its ids noted, its vectors shown to the dense searches."""
    for batch_ids, batch_texts in task.corpus.batches():
        ids.extend(batch_ids)
        if dense is not None:
            dense.add(batch_texts, config.batch)
        yield from batch_texts
        sys.stderr.write(f"measuring {task.name}: {len(ids):,} documents\n")


def _fused(config: MeasureConfig, rankings: dict[str, Ranking]) -> dict[str, Ranking]:
    """The systems asked for, in the order in which they are told: dense in all its forms, lexical, hybrid."""
    from rayvec.indexing.hybrid import reciprocal_rank_fusion, weighted_fusion

    found = dict(rankings)
    if "hybrid" in config.systems:
        best = rankings.get("instruction", rankings.get("dense"))
        assert best is not None
        weights, both = [1.0, config.dense_weight], [rankings["lexical"], best]
        fuse = partial(reciprocal_rank_fusion if config.fusion == "rrf" else weighted_fusion, weights=weights)
        found["hybrid"] = fuse(both, config.k)
    return {
        name: found[name]
        for system in ("dense", "instruction", "lexical", "hybrid")
        for name in sorted(found, key=lambda name: -int(name.partition("@")[2] or sys.maxsize))
        if name.partition("@")[0] == system and system in config.systems
    }


def _evaluate(task: Task, rankings: dict[str, Ranking], ids: list[str]) -> dict[str, PerQuery]:
    from rayvec.evaluation.retrieval import evaluate

    return {name: evaluate(found.rows, ids, task.query_ids, task.qrels) for name, found in rankings.items()}


def _report(
    config: MeasureConfig,
    task: Task,
    encoder: Encoder | None,
    per_query: dict[str, PerQuery],
    ids: list[str],
    seconds: float,
) -> Report:
    from rayvec.evaluation.retrieval import estimates

    there = set(ids)
    relevant = [{id_ for id_, score in task.qrels[query].items() if score > 0} for query in task.query_ids]
    systems = {name: estimates(values) for name, values in per_query.items()}
    return {
        "data": task.name,
        "split": config.split,
        "documents": len(ids),
        "queries": len(task.query_ids),
        "documents_left_out": dict(task.corpus.left_out),
        "queries_missing": task.queries_missing,
        "relevant_missing": len(set().union(*relevant) - there),
        "queries_without_relevant": sum(there.isdisjoint(some) for some in relevant),
        "encoder": None if encoder is None else config.encoder,
        "fingerprint": None if encoder is None else encoder.fingerprint.short,
        "settings": config.model_dump(mode="json", include=_SETTINGS),
        "systems": {name: {m: e.to_json() for m, e in row.items()} for name, row in systems.items()},
        "comparisons": _comparisons(per_query),
        "seconds": round(seconds, 2),
        "output": config.output,
    }


def _comparisons(per_query: dict[str, PerQuery]) -> list[dict[str, Any]]:
    from rayvec.evaluation.statistics import compare

    pairs = [pair for pair in COMPARISONS if set(pair) <= set(per_query)]
    return [
        {"a": a, "b": b, "metric": metric, **compare(values, per_query[b][metric]).to_json()}
        for a, b in pairs
        for metric, values in per_query[a].items()
    ]


def render(report: Report) -> str:
    """The report as people read it: the table, and a line a comparison."""
    from rayvec.evaluation.report import p_value, table
    from rayvec.evaluation.statistics import Estimate

    systems = {
        name: {metric: Estimate(**values) for metric, values in row.items()} for name, row in report["systems"].items()
    }
    head = f"{report['data']}: {report['documents']:,} documents, {report['queries']:,} queries; mean [95 % interval]"
    lines = [
        f"{pair['a']} - {pair['b']}: {pair['difference']:+.3f} {pair['metric']}, {p_value(pair['p_value'])}"
        for pair in report["comparisons"]
        if pair["metric"] == MAIN_METRIC
    ]
    missing, lost, unanswerable = (
        report[name] for name in ("queries_missing", "relevant_missing", "queries_without_relevant")
    )
    notes = [
        left_out_note(report["documents_left_out"]),
        f"left out of the queries: {missing:,}, judged and not there" if missing else "",
        f"relevant and not in the corpus: {lost:,} documents; queries left without one: {unanswerable:,}"
        if lost
        else "",
    ]
    return "\n".join([head, *filter(None, notes), "", table(systems), "", *lines])


def _write(config: MeasureConfig, task: Task, per_query: dict[str, PerQuery], report: Report) -> None:
    """The JSON last: where it is there, all the rest is."""
    import json

    from rayvec.evaluation.report import bar_chart
    from rayvec.evaluation.statistics import Estimate

    stem = _stem(config.output)
    rows = [
        {
            "query": query,
            **{name: {m: round(float(v[i]), 6) for m, v in row.items()} for name, row in per_query.items()},
        }
        for i, query in enumerate(task.query_ids)
    ]
    storage.write_bytes(f"{stem}.queries.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    storage.write_bytes(f"{stem}.md", (render(report) + "\n").encode())
    systems = {name: {m: Estimate(**e) for m, e in row.items()} for name, row in report["systems"].items()}
    bar_chart(systems, [MAIN_METRIC, "recall@10"], f"{task.name}: {report['queries']:,} queries", f"{stem}.png")
    storage.write_json(config.output, report)


def _stem(output: str) -> str:
    """The output's path without `.json`; its files lie beside it."""
    return output.removesuffix(PurePosixPath(output).suffix)
