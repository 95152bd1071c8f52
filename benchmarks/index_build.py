"""How much our build costs above bare FAISS calls on the same vectors, on one core: python benchmarks/index_build.py

Both take the same number of training vectors, add all and write the file. Ours reads them from checked parquet parts,
once to train and once to add; bare FAISS has them in memory, so Flat, a copy, shows what reading costs. CPU time of
one process, so that a busy machine does not decide; the two alternate, and the ratio of their medians is printed. The
proof of recall is ours alone and stands apart.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np

from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.indexing import build, forms, proof, shards, spec
from rayvec.indexing.vectors import check_part, sample_rows
from tests.artifacts import random_vectors, write_embeddings

FACTORIES = ("Flat", "auto", "IVF512,SQ8", "HNSW16")


def ours(corpus: build.Corpus, chosen: spec.Spec, path: Path) -> None:
    """Check, sample, train, fill: the pipeline's own functions, called in this process."""
    for part in corpus.parts:
        check_part(part)
    rows = sample_rows(corpus.count, chosen.samples(corpus.count, corpus.dim), 0)
    trained = build._train(corpus, chosen, rows, 0, 1)
    build._fill(corpus, trained, 0, corpus.count, path, 1)


def bare(vectors: np.ndarray[Any, Any], chosen: spec.Spec, path: Path) -> None:
    """What FAISS's own examples do."""
    index: Any = faiss.index_factory(vectors.shape[1], chosen.factory, faiss.METRIC_INNER_PRODUCT)
    if chosen.kind == "ivf":
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, forms.SAMPLES_A_CENTROID
    if chosen.kind == "hnsw":
        index.hnsw.efConstruction = shards.EF_CONSTRUCTION
    index.train(vectors[: chosen.samples(len(vectors), vectors.shape[1])])
    index.add(vectors)
    faiss.write_index(index, str(path))


def cpu_seconds(call: Callable[[], None]) -> float:
    """CPU seconds of this process for one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@click.command()
@click.option("--count", default=60_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--factory", "factories", multiple=True, default=FACTORIES, show_default=True)
def main(count: int, dim: int, rounds: int, factories: tuple[str, ...]) -> None:
    """Print CPU seconds of both, and their ratio, for each factory string."""
    faiss.omp_set_num_threads(1)
    vectors = random_vectors(count, dim, clusters=400)
    print(f"{count:,} vectors of {dim} dimensions, one core, median of {rounds}")
    print(f"{'factory':<22}{'ours s':>9}{'bare s':>9}{'ratio':>8}{'MB':>8}{'recall@10':>11}{'proof s':>9}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        corpus = build.Corpus.of(
            EmbeddingsDataset.open(str(write_embeddings(place / "in", vectors, ["word"] * count, row_group=4096)))
        )
        for factory in factories:
            chosen = spec.choose(factory, count, dim)
            times: dict[str, list[float]] = {"ours": [], "bare": []}
            for _ in range(rounds):
                times["ours"].append(cpu_seconds(lambda c=chosen: ours(corpus, c, place / "ours")))  # type: ignore[misc]
                times["bare"].append(cpu_seconds(lambda c=chosen: bare(vectors, c, place / "bare")))  # type: ignore[misc]
            start = time.process_time()
            result = prove(corpus, vectors, place / "ours")
            a, b = (statistics.median(times[name]) for name in ("ours", "bare"))
            size = (place / "ours").stat().st_size / 1e6
            print(
                f"{chosen.factory:<22}{a:>9.2f}{b:>9.2f}{a / b:>8.2f}{size:>8.1f}"
                f"{result['recall']:>11.3f}{time.process_time() - start:>9.2f}  {result['search']}"
            )


def prove(corpus: build.Corpus, vectors: np.ndarray[Any, Any], path: Path) -> dict[str, Any]:
    """The proof of a written shard, as in the pipeline."""
    own = sample_rows(corpus.count, proof.QUERIES, 1)
    truth = shards.exact([(0, vectors)], vectors[own], proof.WIDE)
    shard = shards.Shard.read(path, start=0, rows=corpus.count, dim=corpus.dim)
    return proof.prove([shard], [proof.Probe(vectors[own], truth, own)], 0.95)


if __name__ == "__main__":
    main()
