"""What PCA's pass over the parts costs beside reading them alone: python benchmarks/index_pca.py

The same float32 parts, checksums of pages verified, vectors brought to length 1, in one process on one thread:

    read        every vector, and nothing done with it
    moments     count, mean and covariance, as each of PCA's Ray tasks takes them
    apply       every vector projected to the dimensions kept, as the fill does

Rates are of the vectors' bytes over CPU seconds; variants alternate. Before a time counts, the moments must agree with
those that numpy takes of all vectors at once in float64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.harness import alternate, in_words, machine, ratio, write_json


def measure(*, rows: int, dim: int, kept: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    from threadpoolctl import threadpool_limits

    from rayvec.data.embeddings import EmbeddingsDataset
    from rayvec.indexing import pca
    from rayvec.indexing.corpus import Corpus
    from tests.artifacts import random_vectors, write_embeddings

    there = machine()
    vectors_ND = random_vectors(rows, dim, clusters=400)
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        folder = write_embeddings(Path(name) / "parts", vectors_ND, ["word"] * rows, parts=8, row_group=4096)
        corpus = Corpus.of(EmbeddingsDataset.open(str(folder)))
        seen = pca.moments(corpus.batches(0, rows))
        exact = np.cov(vectors_ND.astype(np.float64), rowvar=False, bias=True)
        error = float(np.abs(seen.scatter / seen.count - exact).max() / np.abs(exact).max())
        assert error < 1e-5, f"moments are off by {error}"
        projected = replace(corpus, projection=pca.axes(seen).projection(kept, normalize=True, whiten=False))
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: [len(batch) for batch in corpus.batches(0, rows)],
            "moments": lambda: pca.moments(corpus.batches(0, rows)),
            "apply": lambda: [len(batch) for batch in projected.batches(0, rows)],
        }
        timings = alternate(calls, rounds)
    size = rows * dim * 4
    return {
        "machine": there,
        "shape": [rows, dim, kept],
        "error": error,
        "gigabytes_per_second": {name: size / 1e9 / timing.medians["cpu"] for name, timing in timings.items()},
        "of_reading": {name: ratio(timings, "read", name)["cpu"] for name in ("moments", "apply")},
    }


@click.command(help=__doc__)
@click.option("--rows", default=40_000, show_default=True)
@click.option("--dim", default=1024, show_default=True)
@click.option("--kept", default=256, show_default=True, help="dimensions to project to")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **shape: int) -> None:
    result = measure(**shape)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(
        "{:,} vectors of {}, {} kept; covariance off by {:.1e} of its largest".format(*result["shape"], result["error"])
    )
    for name, rate in result["gigabytes_per_second"].items():
        beside = f"{result['of_reading'][name]:>8.2f} of reading" if name in result["of_reading"] else ""
        print(f"{name:<10}{rate:>8.2f} GB/s{beside}")


if __name__ == "__main__":
    main()
