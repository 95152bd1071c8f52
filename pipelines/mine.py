"""Hard negatives: pairs and an index in, the same pairs with negatives from the index out, for the next training.

Stages: stage the pairs, hash the documents, then on Ray Data encode, search, judge and write, and commit at the end. A
run that was interrupted leaves no output; the same command does it again from the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from pipelines._ray import largest_node_cpus, ray_session, tell_of_idle_gpus
from pipelines.report import Report
from rayvec import storage, uris
from rayvec.data.pair_files import PairColumns, read_pairs
from rayvec.errors import UserError
from rayvec.indexing.mining import Rules, Titles
from rayvec.modeling import references

if TYPE_CHECKING:
    from pipelines._mining import Tally, Task
    from pipelines._mining_inputs import Staged
    from rayvec.encoding.stages import Pool
    from rayvec.indexing.searcher import Index

#: Pairs shown in the report, spread over the output.
SAMPLES = 5


class MineConfig(Rules):
    """Which pairs get negatives, from which index, by which rules, and where the result goes."""

    #: The output of the index job: a folder that every worker sees, or in a bucket. Its documents have their texts.
    index: str = ""
    #: A jsonl, csv, tsv or Parquet file, a folder, a glob or a URI of them, with query, and positive (a text) or
    #: positive_id (of a document in the index), or both; or "pydocs", or a Parquet file of documents: first paragraphs
    #: of docstrings ask. Of an index of windows, each pair has positive_id.
    pairs: str = ""
    #: Where the pairs name their columns otherwise.
    columns: PairColumns = PairColumns()
    #: The result, FILE.jsonl: query, positive and negative (a list), as the supervised stage reads them, with ids and
    #: scores. FILE.report.json and FILE.sample.txt go beside it.
    output: str = ""
    #: Default: the one that the index names. It must be the one that made the index.
    encoder: str = ""
    #: Put before queries, not pooled. Default: the encoder's own for queries; "" for none.
    instruction: str | None = None
    #: Whether a document's title stands before its text in negatives and in positives given by id, as embed has it.
    title: Titles = "prepend"
    #: What becomes of pairs for which fewer than `negatives` are left.
    incomplete: Literal["keep", "drop"] = "keep"
    #: Pairs that are encoded and searched together.
    unit_rows: PositiveInt = 1024
    #: Encoders at work at once; as many as the cluster has room for by default.
    actors: PositiveInt | None = None
    #: Of each encoder; 0 for encoders on CPUs, though there be GPUs.
    num_gpus: float = Field(default=0, ge=0)
    #: Of each encoder on a CPU.
    threads: PositiveInt | None = None
    #: pydocs: the folder that keeps the collected documents; beside the output by default.
    cache: str = ""


def mine(config: MineConfig) -> Report:
    """Mine hard negatives for pairs: search an index, and keep what is near the query but not an answer.

    Raises UserError, MismatchError (another encoder made the index), VerificationError (a damaged index),
    ConcurrentWriterError or StorageError; a finished output is replaced whole, or not at all.
    """
    started = time.monotonic()
    output = _output(config)
    opened, encoder, instruction = _open(config)
    with _working_folder(output) as folder:
        task = _task(config, opened, encoder, instruction, folder)
        return _run(config, opened, task, output, started)


def _output(config: MineConfig) -> Path:
    for key in ("index", "pairs", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is required; give it with --set {key}=…")
    if not config.output.endswith(".jsonl") or not uris.is_local(config.output):
        raise UserError(f"output = {config.output}: give a local or mounted file with --set output=FILE.jsonl")
    return Path(uris.absolute(config.output))


def _open(config: MineConfig) -> tuple[Index, str, str | None]:
    """The verified index, and the encoder and instruction that ask it."""
    from rayvec.indexing.searcher import Index
    from rayvec.modeling.encoder import load_tokenizer_only
    from rayvec.schema import TEXT

    opened = Index.open(config.index, threads=1)
    if TEXT not in opened.columns:
        raise UserError(
            f"the index {config.index} keeps no texts, and negatives are texts; embed again with keep_text=true and "
            "index that"
        )
    reference = references.canonical(config.encoder or str(opened.manifest["encoder"]))
    encoder = load_tokenizer_only(reference)
    opened.fingerprint.require(encoder.fingerprint, mine="the index", theirs="the encoder")
    given = config.instruction
    return opened, reference, encoder.instructions.get("query") if given is None else given or None


@contextlib.contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside the output, removed at the end; what a killed run left there is removed first.

    Raises ConcurrentWriterError when another run works there.
    """
    from rayvec.lease import sole_writer

    held = output.with_name(f".{output.name}.mining")
    with sole_writer(str(held)):
        shutil.rmtree(held / "work", ignore_errors=True)
        (held / "work").mkdir()
        try:
            yield held / "work"
        finally:
            shutil.rmtree(held, ignore_errors=True)


def _task(config: MineConfig, opened: Index, encoder: str, instruction: str | None, work: Path) -> Task:
    from pipelines._mining import Task

    return Task(
        folder=work,
        index=uris.absolute(config.index),
        manifest=opened.manifest,
        encoder=encoder,
        fingerprint=opened.fingerprint,
        instruction=instruction,
        rules=Rules(**config.model_dump(include=set(Rules.model_fields))),
        titles=config.title,
        incomplete=config.incomplete,
    )


def _run(config: MineConfig, opened: Index, task: Task, output: Path, started: float) -> Report:
    from pipelines._mining_inputs import check_windows, hash_documents, stage_pairs

    seconds: dict[str, float] = {}
    with _timed(seconds, "pairs"):
        cache = config.cache or f"{str(output).removesuffix('.jsonl')}.cache"
        pairs = read_pairs(config.pairs, cache, config.columns)
        staged = stage_pairs(task, pairs, config.unit_rows, where=config.pairs)
        check_windows(opened, staged, where=config.index)
    with ray_session():
        with _timed(seconds, "documents"):
            positives = hash_documents(task, staged, where=config.index)
        with _timed(seconds, "mine"):
            tallies = _work_through(config, task, staged)
    report = _report(config, opened, task, tallies, positives.queries)
    whole = _joined(task, len(tallies))
    report |= {
        "sha256": storage.sha256_file(whole),
        "seconds": {**seconds, "all": round(time.monotonic() - started, 2)},
    }
    stem = str(output).removesuffix(".jsonl")
    storage.write_bytes(f"{stem}.sample.txt", (render_sample(report) + "\n").encode())
    storage.write_bytes(f"{stem}.config.yaml", config.to_yaml().encode())
    storage.write_json(f"{stem}.report.json", report)
    # Last: where it is there, all the rest is.
    whole.replace(output)
    storage.sync_folder(output.parent)
    return report


def _work_through(config: MineConfig, task: Task, staged: Staged) -> list[Tally]:
    """The tallies in the order of the units."""
    from pipelines._mining import mine_units

    task.part(0).parent.mkdir()
    done: dict[int, Tally] = {}
    pairs = told = 0
    for unit, tally in mine_units(task, staged.starts, *_pools(config, task.encoder)):
        done[unit] = tally
        pairs += tally.pairs
        if (share := 20 * pairs // len(staged.queries)) > told:
            told = share
            sys.stderr.write(f"mine: {pairs:,} of {len(staged.queries):,} pairs\n")
    return [done[unit] for unit in range(len(staged.starts))]


def _pools(config: MineConfig, encoder: str) -> tuple[Pool, int, float]:
    """The encoders, and how many searchers there are beside them, each of one thread and so much of a CPU."""
    import ray

    from rayvec.encoding.stages import Pool

    there: dict[str, float] = ray.cluster_resources()
    cpus = there.get("CPU", 0.0)
    tell_of_idle_gpus(encoder, config.num_gpus, "num_gpus=1")
    pool = Pool.fit(
        cpus,
        there.get("GPU", 0.0),
        node_cpus=largest_node_cpus(),
        actors=config.actors,
        num_gpus=config.num_gpus,
        threads=config.threads,
    )
    left = max(pool.read_cpus, cpus - pool.actors * pool.num_cpus)
    searchers = max(1, int(left))
    return pool, searchers, min(1.0, left)


def _joined(task: Task, units: int) -> Path:
    """All parts in the order of the pairs, as one file of the working folder, safely on disk."""
    path = task.folder / "whole.jsonl"
    with path.open("wb") as whole:
        for unit in range(units):
            with task.part(unit).open("rb") as part:
                shutil.copyfileobj(part, whole)
        whole.flush()
        os.fsync(whole.fileno())
    return path


def _report(config: MineConfig, opened: Index, task: Task, tallies: list[Tally], queries: int) -> Report:
    from pipelines._mining import Tally

    total = reduce(Tally.__add__, tallies)
    mean = {"positive": (total.positive_sum, total.scored), "negative": (total.negative_sum, total.negatives)}
    path = config.output
    return {
        "pairs": total.pairs,
        "queries": queries,
        "mined": total.full,
        "fewer": total.fewer,
        "without": total.without,
        "lines": total.lines,
        "negatives": total.negatives,
        "candidates": total.candidates,
        "dropped": total.dropped,
        "not_taken": total.kept - total.negatives,
        "positives_not_found": total.pairs - total.scored,
        "mean_score": {name: round(sum_ / count, 4) if count else None for name, (sum_, count) in mean.items()},
        "rules": task.rules.model_dump(mode="json"),
        "instruction": task.instruction,
        "index": config.index,
        "version": opened.version,
        "encoder": task.encoder,
        "fingerprint": opened.fingerprint.short,
        "sample": _sample(task, [tally.lines for tally in tallies]),
        "output": path,
        "next": f"python -m jobs.train --recipe tiny.supervised --set 'data.sets=[{{name: mined, path: {path}}}]' "
        f"--set stage.hard_negatives={config.negatives} --set output=DIR",
    }


def _sample(task: Task, lines: list[int]) -> list[dict[str, Any]]:
    """A few lines of the result, spread evenly."""
    total = sum(lines)
    wanted = sorted({i * total // SAMPLES for i in range(SAMPLES)}) if total else []
    found, first = [], 0
    for unit, count in enumerate(lines):
        here = [number - first for number in wanted if first <= number < first + count]
        if here:
            part = task.part(unit).read_text(encoding="utf-8").split("\n")
            found += [json.loads(part[number]) for number in here]
        first += count
    return found


def render_sample(report: Report, width: int = 110) -> str:
    """The report's sample as a person reads it: query, positive and negatives, each with its score on a line."""
    blocks = []
    for line in report["sample"]:
        rows = [("query", None, line["query"]), ("positive", line["positive_score"], line["positive"])]
        rows += [("negative", *pair) for pair in zip(line["negative_score"], line["negative"], strict=True)]
        blocks.append("\n".join(f"{name:<8} {_score(score)} {_short(text, width)}" for name, score, text in rows))
    return "\n\n".join(blocks)


def _score(score: float | None) -> str:
    return " " * 6 if score is None else f"{score:6.3f}"


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 2)
