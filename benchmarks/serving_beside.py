"""The service beside a hand-written one: python benchmarks/serving_beside.py

The same encoder (a random Llama of 6 layers of 512, some 10 ms a query), index file and threads behind five servers:

    least     our encoder and search behind uvicorn and nothing else, one request at a time in its event loop: no proxy,
              no keys, no checks, no batches; what HTTP costs at least on these cores (asked by one connection only)
    plain     FastAPI with sentence-transformers and FAISS in one process, as one writes it (a `def` route, uvicorn)
    haproxy   jobs.serve with proxy=haproxy (and an API key, which it asks for)
    together  the same with replicas.together=true: encoder, search and HTTP in one process, as the plain one has them
    python    jobs.serve with Ray Serve's own proxy

One client process asks each in turn, every query a new one, over one connection and over several at once. Answers must
name the same documents before a time counts. Over one connection every question is also answered in the client's own
process, right before: `over` is the median of how much longer the server took. (A loop that does nothing but encode is
no measure: it has the caches for itself and the cores awake, which nobody who waits for questions has.) One connection
is asked over a bare socket, a request in one piece and its answer parsed in C: what `http.client` does besides (two
pieces, header lines as of a mail) takes a quarter of a millisecond. Several connections are asked by httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httptools
import httpx
import numpy as np

from benchmarks.encoding_cpu import build
from benchmarks.harness import in_words, machine, write_json

K = 10
#: Queries over one connection, and without one, that are not counted.
WARM = 10
Search = Callable[[str], list[dict[str, Any]]]
SERVERS = ("least", "plain", "haproxy", "together", "python")
ROOT = Path(__file__).resolve().parents[1]
LEAST = """
import json, sys, uvicorn
from pathlib import Path
from benchmarks.serving_beside import searcher
encoder, index, port, threads = sys.argv[1:]
search = searcher(Path(encoder), Path(index), int(threads))
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    asked = {} if scope["path"] == "/ready" else json.loads((await receive())["body"])
    body = json.dumps({"results": [{"hits": search(asked["query"]) if asked else []}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=int(port), log_level="error", access_log=False)
"""
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


def new_queries(queries: list[str]) -> Iterator[str]:
    """Queries without end, hardly one like another, and whoever is asked of the same length: that is what they cost."""
    return (f"{queries[place % len(queries)]} {1000 + place % 9000}" for place in itertools.count())


async def ask(
    address: str, headers: dict[str, str], queries: list[str], clients: int, seconds: float
) -> dict[str, float]:
    """Requests a second over so many connections, and the milliseconds that half and 99 % of them took at most."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    asked = new_queries(queries)

    async def one(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            body = question(address, next(asked))
            begin = time.perf_counter()
            answer = await client.post("/v1/search", json=body)
            times.append(time.perf_counter() - begin)
            assert answer.status_code == 200, answer.text

    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return {"rps": len(times) / seconds, **percentiles(times)}


class Connection:
    """One connection, that stays open for one search after another."""

    def __init__(self, place: str, authorization: str) -> None:
        host, _, port = place.partition(":")
        self._socket = socket.create_connection((host, int(port)), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = (
            "POST /v1/search HTTP/1.1", f"host: {place}", "content-type: application/json",
            f"authorization: {authorization}", "content-length: ",
        )  # fmt: skip
        self._head = "\r\n".join(lines)

    def search(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer."""
        text = json.dumps(body)
        self._body, self._ended = b"", False
        parser = httptools.HttpResponseParser(self)
        self._socket.sendall(f"{self._head}{len(text)}\r\n\r\n{text}".encode())
        while not self._ended:
            data = self._socket.recv(1 << 16)
            assert data, "the server closed the connection"
            parser.feed_data(data)
        return parser.get_status_code(), self._body

    def on_body(self, piece: bytes) -> None:
        """Called by httptools."""
        self._body += piece

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._ended = True

    def close(self) -> None:
        """The end of it."""
        self._socket.close()


def ask_in_turn(
    address: str, headers: dict[str, str], queries: list[str], search: Search, seconds: float
) -> dict[str, float]:
    """The milliseconds of one connection's requests, of `search` in between, and by how much the first were more."""
    alone, served = [], []
    end = time.perf_counter() + seconds
    connection = Connection(urlsplit(address).netloc, headers.get("authorization", ""))
    for query in new_queries(queries):
        begin = time.perf_counter()
        search(query)
        middle = time.perf_counter()
        status, text = connection.search(question(address, query))
        alone.append(middle - begin)
        served.append(time.perf_counter() - middle)
        assert status == 200, text
        if len(alone) > WARM and time.perf_counter() > end:
            break
    connection.close()
    pairs = list(zip(served[WARM:], alone[WARM:], strict=True))
    return {
        **percentiles(served[WARM:]),
        "alone_ms": statistics.median(alone[WARM:]) * 1e3,
        "over_ms": statistics.median(more - less for more, less in pairs) * 1e3,
    }


def percentiles(times: list[float]) -> dict[str, float]:
    """Of seconds, in milliseconds."""
    cuts = statistics.quantiles(times, n=100)
    return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def question(address: str, query: str) -> dict[str, Any]:
    """What is asked: the plain server knows a query and k, ours is told to do no more than that one."""
    ours = {"mode": "dense", "include": ["text", "payload"]}
    return {"query": query, "k": K, **({} if address.endswith("#plain") else ours)}


def searcher(encoder: Path, index: Path, threads: int) -> Search:
    """Encodes and searches one query, in this process."""
    import torch

    from rayvec.indexing.searcher import Index
    from rayvec.modeling.encoder import TextEncoder

    torch.set_num_threads(threads)
    model, opened = TextEncoder.load(str(encoder)), Index.open(index, threads=threads)
    return lambda query: opened.documents(opened.dense(model.encode([query]), K).rows[0])


def measure(
    *,
    documents: int,
    clients: tuple[int, ...],
    seconds: float,
    threads: int,
    rounds: int,
    hidden: int,
    layers: int,
    servers: tuple[str, ...],
) -> dict[str, Any]:
    """All figures: each server is started once a round, in turn; medians of the rounds."""
    from rayvec.serving.security import new_key

    there = machine()
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, index, queries = prepare(folder, documents, 500, hidden, layers)
        key, line = new_key("benchmark")
        (folder / "keys.txt").write_text(line)
        version = index / "versions" / "v1"
        answers: dict[str, list[list[str]]] = {}
        search = searcher(encoder, index, threads)
        for _ in range(rounds):
            for which in servers:
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
                least_of_all = [
                    sys.executable, "-c", LEAST, str(encoder), str(index), str(port), str(threads),
                ]  # fmt: skip
                environment = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "TOKENIZERS_PARALLELISM": "false"}
                command = {"least": least_of_all, "plain": plain}.get(which, ours)
                with serving(command, port, environment, key) as client:
                    address = f"http://127.0.0.1:{port}{'#plain' if which == 'plain' else ''}"
                    answers[which] = [
                        [hit["id"] for hit in client.post("/v1/search", json=body).json()["results"][0]["hits"]]
                        for body in (question(address, query) for query in queries[:10])
                    ]
                    for number in clients if which != "least" else (1,):
                        headers = dict(client.headers)
                        if number == 1:
                            result = ask_in_turn(address, headers, queries, search, seconds)
                        else:
                            result = asyncio.run(ask(address, headers, queries, number, seconds))
                        found.setdefault(which, {}).setdefault(str(number), []).append(result)
        assert all(answers[which] == answers[servers[0]] for which in servers), "the same documents"
    middle = {
        which: {
            number: {name: statistics.median(one[name] for one in several) for name in several[0]}
            for number, several in row.items()
        }
        for which, row in found.items()
    }
    return {"machine": there, "documents": documents, "servers": middle}


@click.command(help=__doc__)
@click.option("--documents", default=20_000, show_default=True)
@click.option("--clients", type=int, multiple=True, default=(1, 32), show_default=True)
@click.option("--seconds", default=15.0, show_default=True, help="of asking, each time")
@click.option("--threads", default=1, show_default=True, help="of encoder and search")
@click.option("--rounds", default=3, show_default=True)
@click.option("--hidden", default=512, show_default=True, help="size of the encoder's states")
@click.option("--layers", default=6, show_default=True)
@click.option("--servers", type=click.Choice(SERVERS), multiple=True, default=SERVERS, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **options: Any) -> None:
    result = measure(**options)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(f"{result['documents']:,} documents; milliseconds, and requests a second of several clients")
    print(f"{'':<10}{'clients':>8}{'p50':>8}{'p99':>8}{'alone':>8}{'over':>8}{'requests/s':>12}")
    for which, row in result["servers"].items():
        for number, one in row.items():
            columns = [("p50_ms", 8), ("p99_ms", 8), ("alone_ms", 8), ("over_ms", 8), ("rps", 12)]
            numbers = "".join(f"{one[name]:>{width}.1f}" if name in one else " " * width for name, width in columns)
            print(f"{which:<10}{number:>8}{numbers}")


if __name__ == "__main__":
    main()
