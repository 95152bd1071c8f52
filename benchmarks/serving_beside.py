"""The service beside a hand-written one: python benchmarks/serving_beside.py

The same encoder (a random Llama of 6 layers of 512, some 10 ms a query), index file and threads behind three servers:

    plain     FastAPI with sentence-transformers and FAISS in one process, as one writes it (a `def` route, uvicorn)
    haproxy   jobs.serve with proxy=haproxy (and an API key, which it asks for)
    together  the same with replicas.together=true: encoder, search and HTTP in one process, as the plain one has them
    python    jobs.serve with Ray Serve's own proxy

One client process asks each in turn, every query a new one, from 1 and from several connections at once. Answers must
name the same documents before a time counts. `alone` is encoding and searching in one process without HTTP: what a
request costs at least. `piped` is the same work asked for by another process over a pipe, one question after another:
what is lost as soon as who asks and who answers are two processes on these cores. One connection alone is asked by
`http.client`, which takes a fifth of a millisecond, several by httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
import numpy as np

from benchmarks.encoding_cpu import build
from benchmarks.harness import in_words, machine, write_json

K = 10
AUTH = ("authorization",)
#: Queries without HTTP that are timed, and those before them that are not.
PROBES = 100
WARM = 10
SERVERS = ("plain", "haproxy", "together", "python")
ROOT = Path(__file__).resolve().parents[1]
PLAIN = """
import sys
import faiss, numpy as np, pyarrow.parquet as pq, torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
encoder, index, documents, port, threads = sys.argv[1:]
torch.set_num_threads(int(threads)); faiss.omp_set_num_threads(int(threads))
model, found, table = SentenceTransformer(encoder), faiss.read_index(index), pq.read_table(documents)
app = FastAPI()
class Query(BaseModel):
    query: str
    k: int = 10
@app.post("/v1/search")
def search(asked: Query):
    vector = model.encode([asked.query], normalize_embeddings=True, show_progress_bar=False)
    scores, rows = found.search(np.asarray(vector, np.float32), asked.k)
    hits = table.take(rows[0]).to_pylist()
    return {"results": [{"hits": [{**hit, "score": float(score)} for hit, score in zip(hits, scores[0])]}]}
@app.get("/ready")
def ready():
    return {}
uvicorn.run(app, port=int(port), log_level="error")
"""


def prepare(
    folder: Path, documents: int, words: int, hidden: int = 512, layers: int = 6
) -> tuple[Path, Path, list[str]]:
    """An encoder folder, an index over random vectors that it might have made, and the words that queries are of."""
    from rayvec.modeling.encoder import TextEncoder
    from tests.artifacts import random_vectors, write_index

    built = build(folder, hidden, layers, 512)
    encoder = TextEncoder.load(str(built))
    texts = [f"document {row} " + "text " * 30 for row in range(documents)]
    write_index(
        folder / "index",
        random_vectors(documents, encoder.dim),
        texts,
        made_by=encoder.fingerprint,
        encoder=str(built),
    )
    generator = np.random.default_rng(0)
    vocabulary = ["join", "path", "read", "table", "list", "sort", "open", "socket", "parse", "json", "graph", "node"]
    return built, folder / "index", [" ".join(generator.choice(vocabulary, 8)) for _ in range(words)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int, environment: dict[str, str], key: str | None) -> Iterator[httpx.Client]:
    """A server, from when it answers until the block ends."""
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, cwd=ROOT)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    if client.get("/ready").status_code == 200:
                        break
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
            yield client
    finally:
        process.terminate()
        process.wait(60)


async def ask(
    address: str, headers: dict[str, str], queries: list[str], clients: int, seconds: float
) -> dict[str, Any]:
    """Requests a second, and the milliseconds that half of them and 99 % of them took at most."""
    times: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds
    places = iter(range(10**9))

    def next_body() -> dict[str, Any]:
        place = next(places)
        return {"query": f"{queries[place % len(queries)]} {place}", "k": K, **extra(address)}

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal failed
        while time.perf_counter() < end:
            body = next_body()
            begin = time.perf_counter()
            answer = await client.post("/v1/search", json=body)
            times.append(time.perf_counter() - begin)
            failed += answer.status_code != 200

    if clients == 1:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        given = {"content-type": "application/json", **{name: headers[name] for name in AUTH if name in headers}}
        while time.perf_counter() < end:
            body = json.dumps(next_body())
            begin = time.perf_counter()
            connection.request("POST", "/v1/search", body, given)
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - begin)
            failed += answer.status != 200
        connection.close()
    else:
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
            await asyncio.gather(*(one(client) for _ in range(clients)))
    assert not failed, f"{failed} requests failed"
    cuts = statistics.quantiles(times, n=100)
    return {"rps": len(times) / seconds, "p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def extra(address: str) -> dict[str, Any]:
    """What our service is asked for, so that both do the same; the plain one knows nothing else."""
    return {} if address.endswith("#plain") else {"mode": "dense", "include": ["text", "payload"]}


def searcher(encoder: Path, index: Path, threads: int) -> Callable[[str], list[dict[str, Any]]]:
    """Encodes and searches one query, in this process."""
    import torch

    from rayvec.indexing.searcher import Index
    from rayvec.modeling.encoder import TextEncoder

    torch.set_num_threads(threads)
    model, opened = TextEncoder.load(str(encoder)), Index.open(index, threads=threads)
    return lambda query: opened.documents(opened.dense(model.encode([query]), K).rows[0])


def answer_over(connection: Connection, encoder: Path, index: Path, threads: int) -> None:
    """The other end of the pipe: an answer for each question, until an empty one comes."""
    search = searcher(encoder, index, threads)
    while query := connection.recv():
        connection.send(search(query))


def median_ms(search: Callable[[str], Any], queries: list[str]) -> float:
    """The median milliseconds of a search."""
    times = []
    for query in queries[:PROBES]:
        begin = time.perf_counter()
        search(query)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def without_http(encoder: Path, index: Path, queries: list[str], threads: int) -> dict[str, float]:
    """Median milliseconds of a query in this process, and in another that is asked over a pipe."""
    there = multiprocessing.get_context("spawn")
    ours, theirs = there.Pipe()
    process = there.Process(target=answer_over, args=(theirs, encoder, index, threads))
    process.start()

    def ask(query: str) -> Any:
        ours.send(query)
        return ours.recv()

    median_ms(ask, queries[:WARM])
    piped = median_ms(ask, queries)
    ours.send("")
    process.join()
    search = searcher(encoder, index, threads)
    median_ms(search, queries[:WARM])
    return {"alone_ms": median_ms(search, queries), "piped_ms": piped}


def measure(*, documents: int, clients: tuple[int, ...], seconds: float, threads: int, rounds: int) -> dict[str, Any]:
    """All figures: each server is started once a round, in turn; medians of the rounds."""
    from rayvec.serving.security import new_key

    there = machine()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, index, queries = prepare(folder, documents, 500)
        key, line = new_key("benchmark")
        (folder / "keys.txt").write_text(line)
        version = index / "versions" / "v1"
        answers: dict[str, list[list[str]]] = {}
        for _ in range(rounds):
            for which in SERVERS:
                port = free_port()
                ours = [
                    sys.executable, "-m", "jobs.serve", "--set", f"index={index}", "--set", f"port={port}", "--set",
                    "query_cache_mb=0", "--set", f"replicas.threads={threads}", "--set",
                    f"keys={folder / 'keys.txt'}", "--set",
                    f"proxy={'python' if which == 'python' else 'haproxy'}", "--set",
                    f"replicas.together={which == 'together'}",
                ]  # fmt: skip
                plain = [
                    sys.executable, "-c", PLAIN, str(encoder), str(version / "shard-00000.faiss"),
                    str(version / "documents.parquet"), str(port), str(threads),
                ]  # fmt: skip
                environment = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "TOKENIZERS_PARALLELISM": "false"}
                with serving(plain if which == "plain" else ours, port, environment, key) as client:
                    address = f"http://127.0.0.1:{port}{'#plain' if which == 'plain' else ''}"
                    answers[which] = [
                        [hit["id"] for hit in client.post("/v1/search", json=body).json()["results"][0]["hits"]]
                        for body in ({"query": query, "k": K, **extra(address)} for query in queries[:10])
                    ]
                    for number in clients:
                        headers = dict(client.headers)
                        result = asyncio.run(ask(address, headers, queries, number, seconds))
                        found.setdefault(which, {}).setdefault(str(number), []).append(result)
        assert all(answers[which] == answers["plain"] for which in SERVERS), "the same documents"
        least = without_http(encoder, index, queries, threads)
    middle = {
        which: {
            number: {name: statistics.median(one[name] for one in several) for name in several[0]}
            for number, several in row.items()
        }
        for which, row in found.items()
    }
    return {"machine": there, "documents": documents, **least, "servers": middle}


@click.command(help=__doc__)
@click.option("--documents", default=20_000, show_default=True)
@click.option("--clients", type=int, multiple=True, default=(1, 32), show_default=True)
@click.option("--seconds", default=15.0, show_default=True, help="of asking, each time")
@click.option("--threads", default=1, show_default=True, help="of encoder and search")
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **options: Any) -> None:
    result = measure(**options)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(
        f"{result['documents']:,} documents; encode and search alone {result['alone_ms']:.1f} ms, "
        f"over a pipe {result['piped_ms']:.1f} ms"
    )
    print(f"{'':<10}{'clients':>8}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}")
    for which, row in result["servers"].items():
        for number, one in row.items():
            print(f"{which:<10}{number:>8}{one['rps']:>12.1f}{one['p50_ms']:>9.1f}{one['p99_ms']:>9.1f}")
    print(json.dumps({which: row[max(row, key=int)]["rps"] for which, row in result["servers"].items()}))


if __name__ == "__main__":
    main()
