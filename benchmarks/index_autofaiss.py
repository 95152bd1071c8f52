"""Our index beside autofaiss's, on the same vectors and queries: python benchmarks/index_autofaiss.py --python PYTHON

PYTHON is the interpreter of an environment that has autofaiss (`pip install autofaiss`); ours is this one. Each build
runs in a process of its own, on one thread, from vectors on disk to an index file; in turn, `--rounds` times:

    autofaiss   build_index as its README calls it, told to use one core (it reads .npy files)
    ours        check, sample, train, fill and proof of recall of `jobs.index`, without Ray (it reads checked parts)

Then each index answers the same queries, which it does not hold, as it was tuned by its maker: recall@10 against exact
search, and milliseconds a query. CPU seconds are those of the process after its imports; memory is the most it held
above what it held then; sizes are of the index file, and of what searching keeps of it in memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.harness import in_words, machine, write_json
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.indexing.vectors import Vectors, unit

K = 10
ROOT = Path(__file__).resolve().parents[1]

#: Runs in both environments: they share nothing but numpy and FAISS.
MEASURED = """
import json, os, re, resource, sys, time
def held():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def measured(build):
    open("/proc/self/clear_refs", "w").write("5")
    before, cpu, wall = held(), time.process_time(), time.perf_counter()
    build()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "memory": held() - before}
"""
AUTOFAISS = (
    MEASURED
    + """
import faiss, logging, numpy as np
from autofaiss import build_index
vectors, queries, out, budget = sys.argv[1:5]
faiss.omp_set_num_threads(1)
infos = {}
def build():
    infos["found"] = build_index(
        embeddings=vectors, index_path=out + "/knn.index", index_infos_path=out + "/infos.json", metric_type="ip",
        max_index_memory_usage=budget, current_memory_available="8GB", nb_cores=1, verbose=logging.ERROR)[1]
figures = measured(build)
index = faiss.read_index(out + "/knn.index")
infos = infos["found"]
faiss.ParameterSpace().set_index_parameters(index, infos["index_param"] if "index_param" in infos else "")
queries = np.load(queries)
def search():
    return index.search(queries, 10)
start = time.perf_counter()
one = [index.search(queries[i:i + 1], 10) for i in range(min(200, len(queries)))]
latency = (time.perf_counter() - start) / len(one) * 1e3
np.save(out + "/rows.npy", search()[1])
print(json.dumps({**figures, "bytes": os.path.getsize(out + "/knn.index"), "latency_ms": latency,
    "resident": os.path.getsize(out + "/knn.index"),
    "index": infos.get("index_key"), "search": infos.get("index_param")}))
"""
)
OURS = (
    MEASURED
    + """
from pathlib import Path
import faiss, numpy as np
from benchmarks.index_autofaiss import build_ours
parts, queries, out, factory, target = sys.argv[1:6]
faiss.omp_set_num_threads(1)
found = {}
def build():
    found.update(build_ours(parts, factory, Path(out), float(target)))
figures = measured(build)
queries = np.load(queries)
from rayvec.indexing import shards
from rayvec.indexing.corpus import Corpus, holding
effort = shards.Effort(**found["search"])
index = [shards.Shard.read(Path(out) / "shard.faiss", start=0, rows=found["rows"], dim=queries.shape[1])]
shards.use_threads(1)
start = time.perf_counter()
one = [shards.search(index, queries[i:i + 1], 10, effort) for i in range(min(200, len(queries)))]
latency = (time.perf_counter() - start) / len(one) * 1e3
np.save(out + "/rows.npy", shards.search(index, queries, 10, effort).rows)
print(json.dumps({**figures, "bytes": os.path.getsize(out + "/shard.faiss"), "latency_ms": latency,
    "resident": found["resident"], "index": found["factory"], "search": found["search"]}))
"""
)


def build_ours(parts: str, factory: str, folder: Path, target: float) -> dict[str, Any]:
    """What the tasks of `jobs.index` do for one shard, in this process: the factory, rows and tuned search."""
    from rayvec.indexing import build, proof, shards, spec
    from rayvec.indexing.corpus import Corpus, holding
    from rayvec.indexing.estimate import estimate
    from rayvec.indexing.vectors import check_part, read_rows, sample_rows

    corpus = Corpus.of(EmbeddingsDataset.open(parts))
    for part in corpus.parts:
        check_part(part)
    chosen = spec.choose(factory, corpus.count, corpus.dim)
    rows = sample_rows(corpus.count, chosen.samples(corpus.count, corpus.dim), 0)
    trained = build._train(corpus, chosen, rows, 0, 1)
    build._fill(corpus, trained, 0, corpus.count, folder / "shard.faiss", 1)
    own = sample_rows(corpus.count, proof.QUERIES, 1, avoid=rows)
    queries = read_rows(list(holding(corpus, own)), own, corpus.dim, normalize=True)
    truth = build._truth(corpus, queries, 0, corpus.count)
    shard = shards.Shard.read(folder / "shard.faiss", start=0, rows=corpus.count, dim=corpus.dim)
    proved = proof.prove([shard], [proof.Probe(queries, truth, own)], target)
    resident = estimate(chosen, corpus.count, corpus.dim).resident
    return {"factory": chosen.factory, "rows": corpus.count, "search": proved["search"], "resident": resident}


def run(python: str, script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One build and its answers, in a process of its own on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    else:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, "-c", script, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"a build failed: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def given(count: int, dim: int, embeddings: str | None, queries: int) -> tuple[Vectors, Vectors]:
    """Vectors to index, and queries of the same kind that are not among them."""
    from tests.artifacts import random_vectors

    if embeddings is None:
        everything = random_vectors(count + queries, dim, clusters=400)
        chosen = np.arange(count, count + queries)
    else:
        from rayvec.data.embeddings import vectors

        everything = unit(
            np.concatenate([vectors(t) for t in EmbeddingsDataset.open(embeddings).iter_tables(["embedding"])])
        )
        chosen = np.random.default_rng(0).choice(len(everything), queries, replace=False)
    return np.delete(everything, chosen, axis=0), np.ascontiguousarray(everything[chosen])


def measure(
    *,
    python: str,
    count: int,
    dim: int,
    embeddings: str | None,
    queries: int,
    factory: str,
    target: float,
    budget: str,
    rounds: int,
) -> dict[str, Any]:
    """All figures; medians of the rounds, recalls of the last."""
    from rayvec.indexing import shards
    from tests.artifacts import write_embeddings

    there = machine()
    vectors_ND, queries_QD = given(count, dim, embeddings, queries)
    truth = shards.exact([(0, vectors_ND)], queries_QD, K).rows
    rows: dict[str, list[dict[str, Any]]] = {"autofaiss": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("npy", "autofaiss", "ours"):
            (folder / part).mkdir()
        np.save(folder / "npy" / "vectors.npy", vectors_ND)
        np.save(folder / "queries.npy", queries_QD)
        write_embeddings(folder / "parts", vectors_ND, ["word"] * len(vectors_ND), parts=8, row_group=4096)
        calls = {
            "autofaiss": (python, AUTOFAISS, [f"{folder}/npy", f"{folder}/queries.npy", f"{folder}/autofaiss", budget]),
            "ours": (
                sys.executable,
                OURS,
                [f"{folder}/parts", f"{folder}/queries.npy", f"{folder}/ours", factory, str(target)],
            ),
        }
        for _ in range(rounds):
            for which, call in calls.items():
                rows[which].append(run(*call))
                found = np.load(folder / which / "rows.npy")
                rows[which][-1]["recall"] = float(
                    np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
                )
    middle = {
        which: {
            key: statistics.median(one[key] for one in several) if isinstance(several[0][key], float | int) else value
            for key, value in several[-1].items()
        }
        for which, several in rows.items()
    }
    over = {
        key: middle["autofaiss"][key] / middle["ours"][key] for key in ("cpu", "wall", "memory", "bytes", "resident")
    }
    shape = [len(vectors_ND), int(vectors_ND.shape[1])]
    return {"machine": there, "shape": shape, "queries": len(queries_QD), **middle, "autofaiss_over_ours": over}


@click.command(help=__doc__)
@click.option("--python", required=True, help="an interpreter that can import autofaiss")
@click.option("--count", default=60_000, show_default=True)
@click.option("--dim", default=1024, show_default=True)
@click.option("--embeddings", default=None, help="take the vectors of this embeddings folder instead of random ones")
@click.option("--queries", default=1000, show_default=True)
@click.option("--factory", default="auto", show_default=True, help="ours")
@click.option("--target", default=0.95, show_default=True, help="recall@10 that ours is tuned to")
@click.option("--budget", default="4GB", show_default=True, help="max_index_memory_usage of autofaiss")
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **options: Any) -> None:
    result = measure(**options)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print("{:,} vectors of {}; one thread each".format(*result["shape"]))
    names = ("cpu s", "wall s", "memory MB", "index MB", "searched", "recall@10", "ms")
    print(" " * 10 + "".join(f"{name:>11}" for name in names) + "  index")
    for name in ("autofaiss", "ours"):
        found = result[name]
        sizes = "".join(f"{found[key] / 1e6:>11.1f}" for key in ("memory", "bytes", "resident"))
        print(
            f"{name:<10}{found['cpu']:>11.1f}{found['wall']:>11.1f}{sizes}{found['recall']:>11.4f}"
            f"{found['latency_ms']:>11.3f}  {found['index']} {found['search']}"
        )
    print("autofaiss / ours:", ", ".join(f"{key} {value:.2f}" for key, value in result["autofaiss_over_ours"].items()))


if __name__ == "__main__":
    main()
