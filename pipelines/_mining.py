"""The two stages of mining on Ray Data: encode the pairs of a unit, then search, judge and write them.

One row is one unit whatever Ray does with blocks: a fixed range of the pairs, encoded and searched together, so that a
score does not depend on who works beside it. Vectors travel as Arrow IPC bytes; what a unit needs else lies in the
run's working folder, which every worker sees and maps into memory.

Shapes: Q pairs of a unit, P of them with a positive text, K candidates, D dimensions.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayvec import uris
from rayvec.errors import RayvecError
from rayvec.fingerprint import Fingerprint
from rayvec.indexing import mining, places
from rayvec.indexing.mining import BELOW_ALL, DIGITS, KEPT, RULES, Keys, Positives, Rules, Scores
from rayvec.indexing.ranking import Rows
from rayvec.indexing.vectors import Vectors, as_array
from rayvec.schema import ID, TEXT, TITLE, embedding_field
from rayvec.storage import JsonObject

if TYPE_CHECKING:
    from ray.data import Dataset

    from rayvec.encoding.stages import Pool
    from rayvec.modeling.encoder import Encoder

UNIT, START, QUERIES, POSITIVES, RECORD = "unit", "start", "queries", "positives", "record"
#: A unit's pairs in the working folder. positive and positive_id: at least one of them is there.
PAIR = pa.schema([("query", pa.string()), ("positive", pa.string()), ("positive_id", pa.string())])
#: Documents read at once: each lies in a row group of its own, all of which is decoded for it.
DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True)
class Task:
    """What every worker must know. `folder` is the run's working folder: pairs/, keys/, positives/, parts/."""

    folder: Path
    index: str
    manifest: JsonObject
    encoder: str
    fingerprint: Fingerprint
    instruction: str | None
    rules: Rules
    titles: mining.Titles
    incomplete: Literal["keep", "drop"]

    def pairs_file(self, unit: int) -> Path:
        """Where the pairs of a unit lie."""
        return self.folder / "pairs" / f"{unit:06d}.parquet"

    def pairs(self, unit: int) -> pa.Table:
        """The pairs of a unit."""
        return pq.read_table(self.pairs_file(unit), schema=PAIR)

    def part(self, unit: int) -> Path:
        """Where the lines of a unit are written."""
        return self.folder / "parts" / f"{unit:06d}.jsonl"


@dataclass
class Tally:
    """What became of pairs and candidates. Sums are of scores rounded to DIGITS."""

    lines: int = 0
    pairs: int = 0
    full: int = 0
    fewer: int = 0
    without: int = 0
    candidates: int = 0
    kept: int = 0
    negatives: int = 0
    scored: int = 0
    positive_sum: float = 0.0
    negative_sum: float = 0.0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))

    def __add__(self, other: Tally) -> Tally:
        dropped = {rule: self.dropped[rule] + other.dropped[rule] for rule in RULES}
        mine, theirs = asdict(self), asdict(other)
        return Tally(**{name: mine[name] + theirs[name] for name in mine if name != "dropped"}, dropped=dropped)


class EncodePairs:
    """unit → vectors of its queries, and of the positives that are given as texts. Lives in an actor."""

    def __init__(self, task: Task, threads: int | None, device: str = "cpu") -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.task, self.threads, self.device = task, threads, device
        self.encoder: Encoder | RayvecError
        try:
            self.encoder = self._load()
        except RayvecError as error:  # of what a constructor raises Ray keeps the text alone, so it is told when called
            self.encoder = error

    def _load(self) -> Encoder:
        from rayvec.modeling.encoder import load_encoder

        encoder = load_encoder(self.task.encoder, device=self.device)
        if self.threads and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        self.task.fingerprint.require(encoder.fingerprint, mine="the index", theirs="the encoder that was loaded")
        return encoder

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row in, one row out."""
        if isinstance(self.encoder, RayvecError):
            raise self.encoder
        for row in range(batch.num_rows):
            pairs = self.task.pairs(batch[UNIT][row].as_py())
            queries_QD = self.encoder.encode(pairs["query"].to_pylist(), self.task.instruction)
            positives_PD = self.encoder.encode(pairs["positive"].drop_null().to_pylist())
            yield pa.table(
                {
                    UNIT: batch[UNIT].slice(row, 1),
                    START: batch[START].slice(row, 1),
                    QUERIES: _vectors_to_ipc(queries_QD),
                    POSITIVES: _vectors_to_ipc(positives_PD),
                }
            )


class MinePairs:
    """A unit's vectors → its lines in the working folder, and a tally. Lives in an actor that maps the index."""

    def __init__(self, task: Task) -> None:
        from rayvec.indexing.searcher import Index

        self.task = task
        # The driver has verified this very version; a worker only opens it.
        version = str(task.manifest["version"])
        if uris.is_local(task.index):
            self.index = Index(places.version_folder(task.index, version), task.manifest, threads=1)
        else:  # this machine's copy is another than the driver's
            self.index = Index.open(task.index, version, threads=1)
        self.keys = Keys.load(task.folder / "keys")
        self.positives = Positives.load(task.folder / "positives")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One row in, one row out."""
        for row in range(batch.num_rows):
            unit, start = batch[UNIT][row].as_py(), batch[START][row].as_py()
            vectors = _vectors_from_ipc(batch[QUERIES][row]), _vectors_from_ipc(batch[POSITIVES][row])
            tally = self._mine(unit, start, *vectors)
            yield pa.table({UNIT: batch[UNIT].slice(row, 1), RECORD: [json.dumps(asdict(tally))]})

    def _mine(self, unit: int, start: int, queries_QD: Vectors, positives_PD: Vectors) -> Tally:
        pairs = self.task.pairs(unit)
        given = pairs["positive"].is_valid().to_numpy()
        positive_scores = np.full(len(pairs), BELOW_ALL)
        positive_rows = self.positives.row[start : start + len(pairs)].copy()
        positive_scores[given] = self._cosines(queries_QD[given], positives_PD)
        found = self.index.dense(queries_QD, self.task.rules.rank_stop)
        tally = Tally(pairs=len(pairs))
        mined = []
        for i, query in enumerate(pairs["query"].to_pylist()):
            rows, scores = mining.ordered(found.rows[i], found.scores[i])
            if not given[i]:
                # Of a document that is there as windows, the one that answers best.
                own = self.keys.document[rows] == self.keys.document[positive_rows[i]]
                positive_scores[i] = next(iter(scores[own]), BELOW_ALL)
                positive_rows[i] = next(iter(rows[own]), positive_rows[i])
            chosen = self._judge(tally, query, start + i, rows, scores, float(positive_scores[i]))
            mined.append((rows[chosen], scores[chosen]))
        self._write(unit, pairs, positive_rows, positive_scores, mined, tally)
        return tally

    def _cosines(self, queries_PD: Vectors, positives_PD: Vectors) -> Scores:
        """As the index sees them: projected, where it is, so that they compare with its own scores."""
        if not len(queries_PD):
            return np.empty(0)
        queries, positives = self.index.prepared(queries_PD), self.index.prepared(positives_PD)
        return np.round(np.einsum("pd,pd->p", queries, positives).astype(np.float64), DIGITS)

    def _judge(self, tally: Tally, query: str, pair: int, rows: Rows, scores: Scores, positive_score: float) -> Rows:
        key = mining.text_hash(query)
        texts, known = self.positives.of(pair)
        keys = self.keys.of(rows)
        verdicts = mining.judge(
            self.task.rules,
            scores,
            keys,
            query=key,
            positive_score=positive_score,
            texts=np.concatenate([texts, self.keys.written[known]]),
            known=self.keys.document[known],
        )
        tally.candidates += len(rows)
        for number, count in Counter(verdicts.tolist()).items():
            if number == KEPT:
                tally.kept += count
            else:
                tally.dropped[RULES[number]] += count
        return mining.choose(self.task.rules, verdicts, key)

    def _write(
        self,
        unit: int,
        pairs: pa.Table,
        positive_rows: Rows,
        positive_scores: Scores,
        mined: list[tuple[Rows, Scores]],
        tally: Tally,
    ) -> None:
        asked = np.where(pairs["positive"].is_valid().to_numpy(), -1, positive_rows)
        texts = self._documents(np.concatenate([asked[asked >= 0], *(found for found, _ in mined)]))
        lines = []
        for i, pair in enumerate(pairs.to_pylist()):
            found, scores = mined[i]
            self._count(tally, len(found), float(positive_scores[i]), scores)
            if self.task.incomplete == "drop" and len(found) < self.task.rules.negatives:
                continue
            line = {
                "query": pair["query"],
                "positive": texts[int(asked[i])][1] if asked[i] >= 0 else pair["positive"],
                "negative": [texts[row][1] for row in found.tolist()],
                "positive_id": pair["positive_id"],
                "negative_id": [texts[row][0] for row in found.tolist()],
                "positive_score": None if positive_scores[i] == BELOW_ALL else float(positive_scores[i]),
                "negative_score": scores.tolist(),
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        tally.lines = len(lines)
        path = self.task.part(unit)
        # Ray may run a unit twice after losing a node: the file appears whole, and is the same.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
        temporary.replace(path)

    def _count(self, tally: Tally, found: int, positive_score: float, scores: Scores) -> None:
        tally.full += found == self.task.rules.negatives
        tally.fewer += 0 < found < self.task.rules.negatives
        tally.without += found == 0
        tally.negatives += found
        tally.negative_sum += float(scores.sum())
        if positive_score != BELOW_ALL:
            tally.scored += 1
            tally.positive_sum += positive_score

    def _documents(self, rows: Rows) -> dict[int, tuple[str, str]]:
        """Id and text, as written, of each of these rows of the index."""
        wanted = np.unique(rows)
        columns = [name for name in (ID, TITLE, TEXT) if name in self.index.columns]
        texts = {}
        for first in range(0, len(wanted), DOCUMENTS_AT_ONCE):
            some = wanted[first : first + DOCUMENTS_AT_ONCE]
            for row, document in zip(some.tolist(), self.index.documents(some, columns), strict=True):
                title = document.get(TITLE)
                texts[row] = document[ID], mining.written_text(title, document[TEXT], self.task.titles)
        return texts


def mine_units(
    task: Task, starts: list[int], pool: Pool, searchers: int, searcher_cpus: float
) -> Iterator[tuple[int, Tally]]:
    """Work through the units on the Ray cluster that is joined; yield the tally of each as its part is written."""
    from rayvec.encoding.stages import cause

    try:
        for row in _dataset(task, starts, pool, searchers, searcher_cpus).iter_rows():
            yield row[UNIT], Tally(**json.loads(row[RECORD]))
    except Exception as error:
        ours = cause(error)
        if ours is None:
            raise
        raise ours from error


def _dataset(task: Task, starts: list[int], pool: Pool, searchers: int, searcher_cpus: float) -> Dataset:
    import ray

    from rayvec.encoding.stages import quiet_logs

    quiet_logs()
    rows = [{UNIT: unit, START: start} for unit, start in enumerate(starts)]
    batches: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            EncodePairs,
            fn_constructor_kwargs={
                "task": task,
                "threads": pool.threads,
                "device": "cuda" if pool.num_gpus else "cpu",
            },
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            **batches,
        )
        .map_batches(
            MinePairs,
            fn_constructor_kwargs={"task": task},
            compute=ray.data.ActorPoolStrategy(size=searchers),
            num_cpus=searcher_cpus,
            **batches,
        )
    )


def _vectors_to_ipc(vectors_ND: Vectors) -> pa.Array:
    """Vectors as the only value of a binary column."""
    field_ = embedding_field(vectors_ND.shape[1])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), type=field_.type)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, pa.schema([field_])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([column], schema=pa.schema([field_])))
    return pa.array([stream.getvalue().to_pybytes()], pa.large_binary())


def _vectors_from_ipc(value: pa.Scalar) -> Vectors:
    with pa.ipc.open_stream(value.as_buffer()) as reader:
        column = reader.read_all().column(0).combine_chunks()
    return as_array(column)
