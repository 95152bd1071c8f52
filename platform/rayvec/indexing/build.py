"""Build an index on Ray: sample, train, fill shards, write documents and BM25, prove.

Each function here is one step, run as Ray tasks; `pipelines.index` puts them in order. Every step streams over the
parts: a task holds a batch of vectors, the sample, its own piece of a shard, or, to merge, one shard and one piece.
What is cut where depends on the vectors and never on the cluster's size: results are the same on any number of CPUs.

Shapes: N vectors, Q queries, D dimensions of the encoder, R dimensions indexed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rayvec.errors import UserError
from rayvec.indexing import documents, proof, tasks
from rayvec.indexing.corpus import PASSES, Corpus, holding, read_documents, schema_of, take
from rayvec.indexing.estimate import Estimate, estimate, measure_rate
from rayvec.indexing.lexical import Bag, Lexical, bag
from rayvec.indexing.ranking import Ranking, Rows, best
from rayvec.indexing.spec import Spec
from rayvec.indexing.tasks import Clock
from rayvec.indexing.vectors import (
    Vectors,
    read_rows,
    sample_rows,
)
from rayvec.schema import ID, TEXT, TITLE
from rayvec.storage import JsonObject

#: Texts that are worth a task of their own.
TEXTS_A_TASK = 10_000
#: A shard larger than this is slow to load and to move.
SHARD_BYTES = 2 << 30
#: A graph is built by one thread, to be the same everywhere, so more vectors than this in one take too long.
GRAPH_ROWS = 500_000
#: float32 bytes of the vectors that one task adds; pieces of a shard are merged in order.
PIECE_BYTES = 256 << 20


def expect(corpus: Corpus, spec: Spec, shards: int) -> Estimate:
    """What the index will cost: sizes by arithmetic, time by a rate measured in a task of this cluster."""
    return estimate(spec, corpus.count, corpus.dim_index, tasks.one(measure_rate), shards)


def train(corpus: Corpus, spec: Spec, seed: int, clock: Clock) -> tuple[Any, Rows]:
    """An empty trained index as bytes, and the rows of the uniform random sample it was trained on.

    The task holds the sample (at most spec.MOST_SAMPLE_BYTES, but a vector for each centroid) and a rotated copy.
    """
    rows = sample_rows(corpus.count, spec.samples(corpus.count, corpus.dim_index), seed)
    cpus, gpus = tasks.node_cpus(), _gpus() if spec.kind == "ivf" else 0
    return clock.one(_train, corpus, spec, rows, seed, cpus, cpus=cpus, gpus=gpus), rows


def _gpus() -> int:
    """One where the cluster has any and this FAISS can use it."""
    from rayvec.indexing import gpu

    return min(1, tasks.cluster_gpus()) if gpu.is_supported() else 0


def _train(corpus: Corpus, spec: Spec, rows: Rows, seed: int, cpus: int) -> Any:
    from rayvec.indexing import shards

    shards.use_threads(tasks.threads(cpus))
    sample = read_rows(list(holding(corpus, rows)), rows, corpus.dim, normalize=corpus.normalize)
    return shards.train(spec, corpus.dim_index, corpus.projection(sample) if corpus.projection else sample, seed)


def shard_count(corpus: Corpus, spec: Spec, asked: int) -> int:
    """How many shards: as asked, else so many that none passes SHARD_BYTES, nor a graph GRAPH_ROWS."""
    needed = math.ceil(estimate(spec, corpus.count, corpus.dim_index).bytes / SHARD_BYTES)
    if spec.kind == "hnsw":
        needed = max(needed, math.ceil(corpus.count / GRAPH_ROWS))
    return min(asked or needed, corpus.count)


def fill(
    corpus: Corpus, spec: Spec, trained: Any, shards: int, folder: Path, clock: Clock, piece_bytes: int = PIECE_BYTES
) -> list[JsonObject]:
    """Write the shards: tasks fill pieces of each in parallel, which are merged in order. Returns their entries.

    A task that fills holds the empty index, a batch and its piece; one that merges holds a shard and a piece. On disk
    the pieces stand beside the shards until they are merged.
    """
    ranges = corpus.ranges(shards)
    names = [f"shard-{number:05d}.faiss" for number in range(len(ranges))]
    pieces = [_pieces(corpus, spec, start, stop, piece_bytes) for start, stop in ranges]
    vectors, index = tasks.shared(corpus), tasks.shared(trained)
    # A graph depends on the order in which threads come, so it has one; what others add does not.
    cpus = 1 if spec.kind == "hnsw" else max(1, min(tasks.node_cpus(), tasks.cluster_cpus() // sum(map(len, pieces))))
    gpus = _gpus() if spec.kind == "ivf" and not spec.fast_scan else 0
    paths = [
        [folder / (name if len(cuts) == 1 else f"{name}.piece-{i:05d}") for i in range(len(cuts))]
        for name, cuts in zip(names, pieces, strict=True)
    ]
    work = [
        (vectors, index, *rows, path, cpus)
        for cuts, files in zip(pieces, paths, strict=True)
        for rows, path in zip(cuts, files, strict=True)
    ]
    filled = sum(clock.each(_fill, work, cpus=cpus, gpus=gpus))
    several = [(files, folder / name) for name, files in zip(names, paths, strict=True) if len(files) > 1]
    for _ in clock.each(_merge, several):
        pass
    assert filled == corpus.count, (filled, corpus.count)
    return [
        {"file": name, "start": start, "rows": stop - start} for name, (start, stop) in zip(names, ranges, strict=True)
    ]


def _pieces(corpus: Corpus, spec: Spec, start: int, stop: int, piece_bytes: int) -> list[tuple[int, int]]:
    """Rows [start, stop) cut for tasks of their own; a graph cannot be merged and stays whole."""
    size = (stop - start) * corpus.dim_index * 4
    count = 1 if spec.kind == "hnsw" else max(1, min(math.ceil(size / piece_bytes), stop - start))
    return list(pairwise(np.linspace(start, stop, count + 1).astype(int).tolist()))


def _merge(pieces: list[Path], path: Path) -> int:
    from rayvec.indexing import shards

    return shards.merge(pieces, path)


def _fill(corpus: Corpus, trained: Any, start: int, stop: int, path: Path, cpus: int) -> int:
    from rayvec.indexing import shards

    shards.use_threads(tasks.threads(cpus))
    return shards.fill(trained, corpus.batches(start, stop), path)


def write_documents(corpus: Corpus, payload: Sequence[str], path: Path) -> int:
    """Write id, title, text and payload of every row, in order. Returns how many."""
    return tasks.one(_write_documents, corpus, tuple(payload), path)


def _write_documents(corpus: Corpus, payload: Sequence[str], path: Path) -> int:
    schema = schema_of(corpus, [ID, TITLE, TEXT, *payload])
    return documents.write(read_documents(corpus, 0, corpus.count, schema), schema, corpus.count, path)


def write_lexical(
    corpus: Corpus, columns: Sequence[str], stemmer: str | None, folder: Path, average: float | None = None
) -> JsonObject:
    """Build BM25 over these columns of every row. Returns its entry for the manifest.

    average: the length of a text to normalise by, for texts that are searched beside others; where it is given, texts
    without a word make no index, and 0 terms.

    Raises UserError when the parts hold none of the columns.
    """
    names = tasks.one(_column_names, corpus, tuple(columns))
    if not names:
        raise UserError(
            f"lexical search needs one of the columns {', '.join(columns)}, and the embeddings hold none; embed with "
            "keep_text=true, or set lexical=false"
        )
    # One piece a core: each task learns the words anew, and the pieces put together are the same however they were cut.
    ranges = corpus.ranges(min(tasks.cluster_cpus(), -(-corpus.count // TEXTS_A_TASK)))
    shared = tasks.shared(corpus)
    bags = list(tasks.each(_bag, [(shared, names, *rows, stemmer) for rows in ranges]))
    terms = tasks.one(_write_lexical, bags, folder, average)
    return {"columns": names, "stemmer": stemmer, "terms": terms}


def _column_names(corpus: Corpus, columns: Sequence[str]) -> list[str]:
    return list(schema_of(corpus, columns).names)


def _bag(corpus: Corpus, names: Sequence[str], start: int, stop: int, stemmer: str | None) -> Bag:
    return bag(_texts(corpus, names, start, stop), stemmer)


def _write_lexical(bags: list[Bag], folder: Path, average: float | None) -> int:
    if average is not None and not any(bag.words for bag in bags):
        return 0
    lexical = Lexical.from_bags(bags, average=average)
    lexical.save(folder)
    return lexical.term_count


def _texts(corpus: Corpus, names: Sequence[str], start: int, stop: int) -> Iterator[str]:
    for batch in read_documents(corpus, start, stop, schema_of(corpus, names)):
        columns = [batch.column(name).to_pylist() for name in names]
        for values in zip(*columns, strict=True):
            yield "\n".join(str(value) for value in values if value is not None)


def truth(corpus: Corpus, queries: Vectors) -> Ranking:
    """The true nearest rows of each query, by comparing it with every vector; as wide as the proof needs."""
    shared = tasks.shared(corpus)
    found = list(tasks.each(_truth, [(shared, queries, *rows) for rows in corpus.ranges(PASSES)]))
    rows = np.concatenate([ranking.rows for ranking in found], axis=1)
    return best(rows, np.concatenate([ranking.scores for ranking in found], axis=1), proof.WIDE)


def _truth(corpus: Corpus, queries: Vectors, start: int, stop: int) -> Ranking:
    from rayvec.indexing import shards

    shards.use_threads(1)
    return shards.exact(_numbered(corpus, start, stop), queries, proof.WIDE)


def _numbered(corpus: Corpus, start: int, stop: int) -> Iterator[tuple[int, Vectors]]:
    for vectors in corpus.batches(start, stop):
        yield start, vectors
        start += len(vectors)


def prove(
    corpus: Corpus,
    entries: list[JsonObject],
    folder: Path,
    trained_on: Rows,
    target: float,
    seed: int,
    asked: Corpus | None = None,
) -> JsonObject:
    """Measure the written shards against exact search, in a process that has only read them from disk.

    asked: vectors of queries, of the same encoder; QUERIES of them are drawn.

    Raises VerificationError when the recall target is not reached.
    """
    own = sample_rows(corpus.count, proof.QUERIES, seed + 1, avoid=trained_on)
    queries = take(corpus, own)
    probes = [_probe(corpus, queries, own)]
    if asked is not None:
        given = take(asked, sample_rows(asked.count, proof.QUERIES, seed))
        probes.append(_probe(corpus, given, np.full(len(given), -1)))
    result = tasks.one(_prove, entries, folder, corpus.dim_index, probes, target)
    if corpus.projection:
        unreduced = truth(replace(corpus, projection=None), queries)
        result["recall_of_reduction"] = proof.recall(probes[0].truth, unreduced, own)
    return result


def _probe(corpus: Corpus, queries: Vectors, own: Rows) -> proof.Probe:
    projected = corpus.projection(queries) if corpus.projection else queries
    return proof.Probe(projected, truth(corpus, projected), own)


def _prove(entries: list[JsonObject], folder: Path, dim: int, probes: list[proof.Probe], target: float) -> JsonObject:
    from rayvec.indexing.shards import Shard, use_threads

    use_threads(1)

    def read() -> list[Shard]:
        return [Shard.read(folder / e["file"], start=e["start"], rows=e["rows"], dim=dim) for e in entries]

    found = proof.prove(read(), probes, target)
    resident = proof.resident(read, [folder / e["file"] for e in entries], probes[-1].queries, found["search"])
    return {"k": proof.K, "queries": len(probes[0].own), "target": target, **found, "resident": resident}
