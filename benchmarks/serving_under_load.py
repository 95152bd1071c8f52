"""What a service does when it is asked too much, changed under traffic, or sent rubbish:
python benchmarks/serving_under_load.py

`jobs.serve` with the encoder of `serving_beside.py` (some 10 ms a query), on Ray Serve:

    overload    requests a second answered to as many clients as the service has places (the peak), then of `--times` as
                many requests as that a second for `--seconds`, sent whether or not others are answered; statuses,
                memory, and how soon after a request alone takes no longer than before. The flood costs this machine,
                which sends it too, cores that the service has not: `peak_beside_flood` is the peak while the same flood
                goes to a bare uvicorn that answers each request with a line and nothing else
    swap        a new index version every 5 s under steady traffic: failures, and hits that are of no version named
    rubbish     `--bodies` bodies of any kind: statuses, memory
    plain       with `--plain`, the overload of the hand-written server of `serving_beside.py`
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import httptools
import httpx
import psutil

from benchmarks.harness import in_words, machine, write_json
from benchmarks.serving_beside import PLAIN, ROOT, K, free_port, prepare, serving
from rayvec.serving.security import new_key
from tests.artifacts import random_vectors, write_index

SWAP_SECONDS = 5.0
#: Answers everything at the least that uvicorn can, so that a flood against it costs what a flood costs.
REFUSING = """
import sys, uvicorn
BODY = b'{"error":{"message":"the service is at its limit of requests; try again shortly"}}'
async def app(scope, receive, send):
    if scope["type"] == "http":
        status = 200 if scope["path"] == "/ready" else 429
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""
#: The API key that the service asks for.
HEADERS: dict[str, str] = {}
RECOVERY_SECONDS = 60.0
CLIENTS = 8
#: Requests that the service takes at a time; as many are asked at once for the peak.
PLACES = 16


def memory() -> int:
    """Resident bytes of the service's replicas on this machine that this process has started."""
    total = 0
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "ServeReplica" in " ".join(one.cmdline()):
                total += one.memory_info().rss
    return total


def seconds_by_part() -> Counter[str]:
    """CPU seconds so far of this process (the client), and of each kind of process that it has started."""
    seconds: Counter[str] = Counter()
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            times = one.cpu_times()
            seconds[_part(one)] += times.user + times.system
    return seconds


def _part(process: psutil.Process) -> str:
    if process.pid == os.getpid():
        return "client"
    command = " ".join(process.cmdline())
    found = re.search(r"ServeReplica:rayvec:(\w+)|(haproxy)|(ProxyActor)", command)
    return next(name for name in found.groups() if name) if found else "plain" if PLAIN in command else "ray"


async def asked(client: httpx.AsyncClient, query: str, seen: Counter[str], times: list[float]) -> httpx.Response | None:
    begin = time.perf_counter()
    try:
        answer = await client.post("/v1/search", json={"query": query, "k": K, "mode": "dense", "include": []})
    except httpx.HTTPError as error:
        seen[type(error).__name__] += 1
        return None
    seen[str(answer.status_code)] += 1
    if answer.status_code == httpx.codes.OK:
        times.append(time.perf_counter() - begin)
    return answer


async def steady(
    address: str, seconds: float, clients: int, keep: list[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """Several clients, each with one request at a time."""
    seen: Counter[str] = Counter()
    times: list[float] = []
    places, end = iter(range(10**9)), time.perf_counter() + seconds

    async def one(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            answer = await asked(client, f"read a table {next(places)}", seen, times)
            if answer is not None and keep is not None and answer.status_code == httpx.codes.OK:
                found = answer.json()
                keep.extend((found["index_version"], hit["id"]) for hit in found["results"][0]["hits"])

    async with httpx.AsyncClient(base_url=address, headers=HEADERS, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return {"rps": len(times) / seconds, "p50_ms": statistics.median(times) * 1e3, "statuses": dict(seen)}


class Wire(asyncio.Protocol):
    """A connection that has one request at a time; it is idle again with the answer."""

    def __init__(self, wires: Wires) -> None:
        self._wires = wires
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._asked: float | None = None

    # Names of these four are asyncio's and httptools'.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The way out."""
        self._transport = transport

    def ask(self, request: bytes) -> None:
        """Send a request; there is none under way."""
        self._asked = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Some bytes of an answer."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The end of an answer."""
        assert self._asked is not None
        seconds, self._asked = time.perf_counter() - self._asked, None
        status = str(self._parser.get_status_code())
        if self._parser.should_keep_alive():
            self._parser = httptools.HttpResponseParser(self)
            self._wires.idle.append(self)
        else:
            self._transport.close()
        self._wires.answered(status, seconds)

    def connection_lost(self, error: Exception | None) -> None:
        """The other end went away."""
        if self in self._wires.idle:
            self._wires.idle.remove(self)
        if self._asked is not None:
            self._wires.answered(type(error).__name__ if error else "closed", None)


class Wires:
    """Searches over as many connections as it takes, and what became of them.

    Bare connections cost the machine half of what aiohttp does and a tenth of what httpx does: it is the service that
    is to be measured, on the cores that are left to it. then: called after each answer.
    """

    def __init__(self, address: str, then: Callable[[], None] = lambda: None) -> None:
        self._host, self._port = address.removeprefix("http://").split(":")
        headers = {"host": f"{self._host}:{self._port}", "content-type": "application/json", **HEADERS}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"POST /v1/search HTTP/1.1\r\n{lines}"
        self._then = then
        self.idle: list[Wire] = []
        self.seen: Counter[str] = Counter()
        self.times: list[float] = []
        self.sent = 0

    def send(self) -> None:
        """Send one more search."""
        body = json.dumps({"query": f"open a socket {self.sent}", "k": K, "mode": "dense", "include": []})
        request = f"{self._head}content-length: {len(body)}\r\n\r\n{body}".encode()
        self.sent += 1
        if self.idle:
            self.idle.pop().ask(request)
        else:
            self._connecting = asyncio.create_task(self._connect(request))

    async def _connect(self, request: bytes) -> None:
        try:
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: Wire(self), self._host, int(self._port)
            )
        except OSError as error:
            self.answered(type(error).__name__, None)
        else:
            wire.ask(request)

    def answered(self, what: str, seconds: float | None) -> None:
        """Write down what became of a request."""
        self.seen[what] += 1
        if seconds is not None and what == str(int(httpx.codes.OK)):
            self.times.append(seconds)
        self._then()

    def result(self, seconds: float) -> dict[str, Any]:
        """What there is to tell after so many seconds."""
        times = list(self.times)
        return {
            "sent_per_second": self.sent / seconds,
            "rps": len(times) / seconds,
            "p50_ms": statistics.median(times) * 1e3 if times else None,
            "p99_ms": statistics.quantiles(times, n=100)[98] * 1e3 if len(times) > 1 else None,
            "statuses": dict(self.seen),
            "unanswered": self.sent - self.seen.total(),
        }


async def peak(address: str, seconds: float, clients: int) -> dict[str, Any]:
    """So many connections, each with one request at a time."""
    end = time.perf_counter() + seconds
    wires = Wires(address, lambda: wires.send() if time.perf_counter() < end else None)
    for _ in range(clients):
        wires.send()
    await asyncio.sleep(seconds)
    return wires.result(seconds)


async def flood(address: str, rate: float, seconds: float) -> dict[str, Any]:
    """So many requests a second, sent whether or not others are answered; what is unanswered at the end is given up."""
    wires = Wires(address)
    begin = time.perf_counter()
    while (now := time.perf_counter() - begin) < seconds:
        while wires.sent < now * rate:
            wires.send()
        await asyncio.sleep(0.005)
    return wires.result(time.perf_counter() - begin)


def recovery(address: str, before_ms: float) -> float | None:
    """Seconds until a request alone takes no more than twice as long as before; None when that is over a minute."""
    begin = time.perf_counter()
    with httpx.Client(base_url=address, headers=HEADERS, timeout=60) as client:
        while (now := time.perf_counter()) - begin < RECOVERY_SECONDS:
            with suppress(httpx.HTTPError):
                answer = client.post("/v1/search", json={"query": f"sort {now}", "k": K, "mode": "dense"})
                if answer.status_code == httpx.codes.OK and (time.perf_counter() - now) * 1e3 < 2 * before_ms:
                    return time.perf_counter() - begin
    return None


def beside_flood(address: str, rate: float, seconds: float) -> float:
    """Requests a second answered to a few clients while a flood goes to a server that does nothing but refuse."""
    port = free_port()
    with serving([sys.executable, "-c", REFUSING, str(port)], port, {}, None):

        async def both() -> float:
            away = asyncio.create_task(flood(f"http://127.0.0.1:{port}", rate, seconds + 1))
            found = await peak(address, seconds, PLACES)
            await away
            return float(found["rps"])

        return asyncio.run(both())


def overload(address: str, seconds: float, times: float) -> dict[str, Any]:
    alone = asyncio.run(peak(address, 5, 1))["p50_ms"]
    most = asyncio.run(peak(address, 15, PLACES))
    beside = beside_flood(address, times * most["rps"], 15)
    before, spent = memory(), seconds_by_part()
    during = asyncio.run(flood(address, times * most["rps"], seconds))
    during["cpu_seconds"] = {part: round(used, 1) for part, used in (seconds_by_part() - spent).items()}
    again = recovery(address, alone)
    return {
        "peak": most,
        "peak_beside_flood": beside,
        "overload": during,
        "recovery_s": again,
        "memory": [before, memory()],
        "alone_ms": alone,
    }


def swap(address: str, index: Path, encoder: str, seconds: float, documents: int) -> dict[str, Any]:
    """Versions whose documents' ids say which version they are of, so that a mixture shows."""
    from rayvec.modeling.encoder import TextEncoder

    loaded = TextEncoder.load(encoder)
    stop, published = threading.Event(), []

    def publish() -> None:
        while not stop.wait(SWAP_SECONDS):
            number = len(published) + 2
            ids = [f"v{number}-{row}" for row in range(documents)]
            vectors = random_vectors(documents, loaded.dim, seed=number)
            facts = write_index(
                index, vectors, ["a text"] * documents, made_by=loaded.fingerprint, encoder=encoder, ids=ids
            )
            published.append(facts["version"])

    thread = threading.Thread(target=publish)
    thread.start()
    kept: list[tuple[str, str]] = []
    found = asyncio.run(steady(address, seconds, CLIENTS, kept))
    stop.set()
    thread.join()
    mixed = sum(1 for version, id_ in kept if version != "v1" and not id_.startswith(f"{version}-"))
    return {**found, "published": len(published), "served": len({version for version, _ in kept}), "mixed_hits": mixed}


def bodies(count: int, seed: int = 0) -> Iterator[bytes]:
    """Valid requests with something wrong, JSON of any shape, and bytes."""
    draw = random.Random(seed)
    names = ["query", "k", "mode", "input", "model", "include", "filter", "min_score", "unique_by", "rerank", "fusion"]
    odd: list[Any] = [
        None,
        True,
        -1,
        2**31 - 1,
        2**63,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "\ud800",
        "a" * 5_000,
        [],
        {},
    ]

    def value(depth: int) -> Any:
        kind = draw.random()
        if depth == 0 or kind < 0.6:
            return draw.choice(odd)
        if kind < 0.8:
            return [value(depth - 1) for _ in range(draw.randrange(4))]
        return {draw.choice(names): value(depth - 1) for _ in range(draw.randrange(4))}

    for _ in range(count):
        kind = draw.random()
        if kind < 0.1:
            yield draw.randbytes(draw.randrange(200))
        elif kind < 0.15:
            yield b"[" * draw.randrange(1, 3_000)
        elif kind < 0.5:
            body = {"query": "read a table", "k": 3, draw.choice(names): value(2)}
            yield json.dumps(body).encode("utf-8", "surrogatepass")
        else:
            yield json.dumps(value(4)).encode("utf-8", "surrogatepass")


def rubbish(address: str, count: int) -> dict[str, Any]:
    seen: Counter[str] = Counter()

    async def run() -> None:
        waiting = bodies(count)

        async def one(client: httpx.AsyncClient) -> None:
            for body in waiting:
                path = "/v1/embeddings" if len(body) % 3 == 0 else "/v1/search"
                answer = await client.post(path, content=body, headers={"content-type": "application/json"})
                seen[str(answer.status_code)] += 1

        async with httpx.AsyncClient(base_url=address, headers=HEADERS, timeout=60) as client:
            await asyncio.gather(*(one(client) for _ in range(CLIENTS)))

    asyncio.run(steady(address, 5, CLIENTS))
    before = memory()
    asyncio.run(run())
    return {"statuses": dict(sorted(seen.items())), "memory": [before, memory()]}


@click.command(help=__doc__)
@click.option("--documents", default=2_000, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--times", default=10.0, show_default=True, help="the peak that is sent in the overload")
@click.option("--bodies", "count", default=100_000, show_default=True)
@click.option("--proxy", type=click.Choice(["haproxy", "python"]), default="haproxy", show_default=True)
@click.option("--together", is_flag=True, help="encoder, search and HTTP in one process")
@click.option("--plain", is_flag=True, help="overload the hand-written server of serving_beside.py too")
@click.option("--hidden", default=512, show_default=True, help="size of the encoder's states")
@click.option("--layers", default=6, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    documents: int,
    seconds: float,
    times: float,
    count: int,
    proxy: str,
    together: bool,
    plain: bool,
    hidden: int,
    layers: int,
    json_path: Path | None,
) -> None:
    there = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, index, _ = prepare(folder, documents, 10, hidden, layers)
        port = free_port()
        key, line = new_key("benchmark")
        (folder / "keys.txt").write_text(line)
        HEADERS["authorization"] = f"Bearer {key}"
        command = [
            sys.executable, "-m", "jobs.serve", "--set", f"index={index}", "--set", f"port={port}", "--set",
            "query_cache_mb=0", "--set", "replicas.threads=1", "--set", f"limits.in_flight={PLACES}", "--set",
            f"proxy={proxy}", "--set", f"keys={folder / 'keys.txt'}", "--set",
            f"replicas.together={together}",
        ]  # fmt: skip
        environment = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "TOKENIZERS_PARALLELISM": "false"}
        with serving(command, port, environment, key):
            address = f"http://127.0.0.1:{port}"
            result: dict[str, Any] = {"machine": there, "overload": overload(address, seconds, times)}
            print(in_words(there))
            print("overload", json.dumps(result["overload"]), flush=True)
            result["rubbish"] = rubbish(address, count)
            print("rubbish", json.dumps(result["rubbish"]), flush=True)
            result["swap"] = swap(address, index, str(encoder), seconds, documents)
            print("swap", json.dumps(result["swap"]), flush=True)
        if plain:
            folder = index / "versions" / "v1"
            by_hand = [
                sys.executable, "-c", PLAIN, str(encoder), str(folder / "shard-00000.faiss"),
                str(folder / "documents.parquet"), str(port), "1",
            ]  # fmt: skip
            with serving(by_hand, port, environment, key):
                result["plain"] = overload(address, seconds, times)
                print("plain", json.dumps(result["plain"]), flush=True)
        shutil.rmtree(index)
    write_json(json_path, result)


if __name__ == "__main__":
    main()
