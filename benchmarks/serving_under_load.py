"""What a service does when it is asked too much, changed under traffic, or sent rubbish:
python benchmarks/serving_under_load.py

`jobs.serve` with the encoder of `serving_beside.py` (some 10 ms a query), on Ray Serve:

    overload    requests a second answered by a few clients (the peak), then by `--times` as many requests as that a
                second for `--seconds`, sent whether or not others are answered; statuses, memory, and how soon after
                a request alone takes no longer than before
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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import click
import httpx
import psutil

from benchmarks.harness import in_words, machine, write_json
from benchmarks.serving_beside import PLAIN, ROOT, K, free_port, prepare, serving
from rayvec.serving.security import new_key
from tests.artifacts import random_vectors, write_index

SWAP_SECONDS = 5.0
#: The API key that the service asks for.
HEADERS: dict[str, str] = {}
RECOVERY_SECONDS = 60.0
CLIENTS = 8


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


async def flood(address: str, rate: float, seconds: float) -> dict[str, Any]:
    """So many requests a second, sent whether or not others are answered; what is unanswered at the end is given up.

    By aiohttp, which costs the machine a fraction of what httpx does: it is the service that is to be measured.
    """
    seen: Counter[str] = Counter()
    times: list[float] = []

    async def one(session: aiohttp.ClientSession, place: int) -> None:
        begin = time.perf_counter()
        body = {"query": f"open a socket {place}", "k": K, "mode": "dense", "include": []}
        try:
            async with session.post(f"{address}/v1/search", json=body) as answer:
                await answer.read()
        except aiohttp.ClientError as error:
            seen[type(error).__name__] += 1
            return
        seen[str(answer.status)] += 1
        if answer.status == httpx.codes.OK:
            times.append(time.perf_counter() - begin)

    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS) as session:
        begin, sent = time.perf_counter(), 0
        while (now := time.perf_counter() - begin) < seconds:
            while sent < now * rate:
                task = asyncio.create_task(one(session, sent))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.005)
        spent, unanswered = time.perf_counter() - begin, len(tasks)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "sent_per_second": sent / spent,
        "goodput": len(times) / spent,
        "p50_ms": statistics.median(times) * 1e3 if times else None,
        "p99_ms": statistics.quantiles(times, n=100)[98] * 1e3 if len(times) > 1 else None,
        "statuses": dict(seen),
        "unanswered": unanswered,
    }


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


def overload(address: str, seconds: float, times: float) -> dict[str, Any]:
    alone = asyncio.run(steady(address, 5, 1))["p50_ms"]
    peak = asyncio.run(steady(address, 15, CLIENTS))
    before, spent = memory(), seconds_by_part()
    during = asyncio.run(flood(address, times * peak["rps"], seconds))
    during["cpu_seconds"] = {part: round(used, 1) for part, used in (seconds_by_part() - spent).items()}
    again = recovery(address, alone)
    return {"peak": peak, "overload": during, "recovery_s": again, "memory": [before, memory()], "alone_ms": alone}


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
            "query_cache_mb=0", "--set", "replicas.threads=1", "--set", "limits.in_flight=16", "--set",
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
