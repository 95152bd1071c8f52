"""What a vector costs to index as there are more of them: python benchmarks/index_scale.py

The same kind of index over more and more vectors, read from checked parts on one thread, in this process: training on
the sample, filling, and the size of the file, each divided by the number of vectors. Parts are written once, for the
largest number; smaller numbers take the first of them. Recall@10 is of the tuned search, against exact search, so that
no size is cheap for being bad.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.harness import in_words, machine, write_json


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its CPU seconds."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def measure(*, counts: tuple[int, ...], dim: int, factory: str) -> dict[str, Any]:
    """All figures; one run of each size."""
    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing import build, proof, shards, spec
    from rayvec.indexing.corpus import Corpus
    from rayvec.indexing.vectors import sample_rows
    from tests.artifacts import random_vectors, write_embeddings

    there = machine()
    rows = []
    most = max(counts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors_ND = random_vectors(most, dim, clusters=2000)
        parts = write_embeddings(folder / "parts", vectors_ND, ["w"] * most, parts=most // 50_000, row_group=4096)
        whole = Corpus.of(EmbeddingsDataset.open(str(parts)))
        for count in sorted(counts):
            corpus = replace(whole, parts=tuple(part for part in whole.parts if part.stop <= count))
            named = factory.format(centroids=spec.usual_centroids(corpus.count))
            chosen = spec.choose(named, corpus.count, dim)
            sample = sample_rows(corpus.count, chosen.samples(corpus.count, dim), 0)
            path = folder / "shard.faiss"
            trained, training = timed(lambda c=corpus, s=chosen, r=sample: build._train(c, s, r, 0, 1))
            _, filling = timed(lambda c=corpus, t=trained, p=path: build._fill(c, t, 0, c.count, p, 1))
            own = sample_rows(corpus.count, proof.QUERIES, 1, avoid=sample)
            shards.use_threads(1)
            truth = shards.exact([(0, vectors_ND[: corpus.count])], vectors_ND[own], proof.WIDE)
            shard = shards.Shard.read(path, start=0, rows=corpus.count, dim=dim)
            proved = proof.prove([shard], [proof.Probe(vectors_ND[own], truth, own)], 0.9)
            rows.append(
                {
                    "vectors": corpus.count,
                    "factory": named,
                    "train_us": 1e6 * training / corpus.count,
                    "fill_us": 1e6 * filling / corpus.count,
                    "bytes": path.stat().st_size / corpus.count,
                    "recall": proved["recall"],
                    "search": proved["search"],
                    "latency_ms": proved["latency_ms"]["p50"],
                }
            )
    costs = np.array([row["train_us"] + row["fill_us"] for row in rows])
    return {"machine": there, "dim": dim, "rows": rows, "over_first": (costs / costs[0]).tolist()}


@click.command(help=__doc__)
@click.option("--count", "counts", type=int, multiple=True, default=(100_000, 500_000, 2_000_000), show_default=True)
@click.option("--dim", default=64, show_default=True)
@click.option("--factory", default="IVF{centroids}_HNSW32,SQ8", show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **options: Any) -> None:
    result = measure(**options)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    names = ("vectors", "train us", "fill us", "bytes", "recall", "ms", "over first")
    print("".join(f"{name:>{width}}" for name, width in zip(names, (10, 10, 9, 8, 8, 8, 12), strict=True)))
    for row, over in zip(result["rows"], result["over_first"], strict=True):
        print(
            f"{row['vectors']:>10,}{row['train_us']:>10.1f}{row['fill_us']:>9.1f}{row['bytes']:>8.1f}{row['recall']:>8.3f}"
            f"{row['latency_ms']:>8.3f}{over:>12.2f}  {row['factory']} {row['search']}"
        )


if __name__ == "__main__":
    main()
