"""How much our build costs above bare FAISS calls on the same vectors, on one core: python benchmarks/index_build.py

Each trains, adds all and writes the file. Ours reads the vectors from checked parquet parts, once to train and once to
add; bare FAISS has them in memory, so Flat, a copy, shows what reading costs. Bare FAISS is called in two ways: as its
examples do (all vectors to train on, of which it takes as many as it likes, 10 rounds of k-means), and with our own
settings (as many training vectors and rounds as we take). CPU time of one process, so that a busy machine does not
decide; the three alternate, and the ratios of the medians are printed. The proof of recall is ours alone and stands
apart.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np

from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.indexing import build, forms, proof, shards, spec
from rayvec.indexing.corpus import Corpus
from rayvec.indexing.vectors import check_part, sample_rows
from tests.artifacts import random_vectors, write_embeddings

FACTORIES = ("Flat", "auto", "IVF512,SQ8", "HNSW16")


def ours(corpus: Corpus, chosen: spec.Spec, path: Path) -> None:
    """Check, sample, train, fill: the pipeline's own functions, called in this process."""
    for part in corpus.parts:
        check_part(part)
    rows = sample_rows(corpus.count, chosen.samples(corpus.count, corpus.dim), 0)
    trained = build._train(corpus, chosen, rows, 0, 1)
    build._fill(corpus, trained, 0, corpus.count, path, 1)


def bare(vectors: np.ndarray[Any, Any], chosen: spec.Spec, path: Path, *, alike: bool) -> None:
    """What FAISS's own examples do; alike: trained on as many vectors, in as many rounds, as ours."""
    index: Any = faiss.index_factory(vectors.shape[1], chosen.factory, faiss.METRIC_INNER_PRODUCT)
    samples = vectors
    if alike:
        samples = vectors[: chosen.samples(len(vectors), vectors.shape[1])]
        if chosen.kind == "ivf":
            index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, forms.SAMPLES_A_CENTROID
            index.cp.niter = forms.KMEANS_ROUNDS
    if chosen.kind == "hnsw":
        index.hnsw.efConstruction = shards.EF_CONSTRUCTION
    index.train(samples)
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
    heads = ("ours s", "bare s", "ratio", "alike s", "ratio", "MB", "recall@10", "proof s")
    print(f"{'factory':<20}" + "".join(f"{head:>10}" for head in heads))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        corpus = Corpus.of(
            EmbeddingsDataset.open(str(write_embeddings(place / "in", vectors, ["word"] * count, row_group=4096)))
        )
        for factory in factories:
            chosen = spec.choose(factory, count, dim)
            ways: dict[str, Callable[[], None]] = {
                "ours": partial(ours, corpus, chosen, place / "ours"),
                "bare": partial(bare, vectors, chosen, place / "bare", alike=False),
                "alike": partial(bare, vectors, chosen, place / "bare", alike=True),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    times[name].append(cpu_seconds(way))
            start = time.process_time()
            result = prove(corpus, vectors, place / "ours")
            mine, usual, alike = (statistics.median(times[name]) for name in ways)
            size = (place / "ours").stat().st_size / 1e6
            print(
                f"{chosen.factory:<20}{mine:>10.2f}{usual:>10.2f}{mine / usual:>10.2f}{alike:>10.2f}"
                f"{mine / alike:>10.2f}{size:>10.1f}{result['recall']:>10.3f}"
                f"{time.process_time() - start:>10.2f}  {result['search']}"
            )


def prove(corpus: Corpus, vectors: np.ndarray[Any, Any], path: Path) -> dict[str, Any]:
    """The proof of a written shard, as in the pipeline."""
    own = sample_rows(corpus.count, proof.QUERIES, 1)
    truth = shards.exact([(0, vectors)], vectors[own], proof.WIDE)
    shard = shards.Shard.read(path, start=0, rows=corpus.count, dim=corpus.dim)
    return proof.prove([shard], [proof.Probe(vectors[own], truth, own)], 0.95)


if __name__ == "__main__":
    main()
