"""`jobs/serve.py` as a process of its own, on Ray Serve and a real port: what tests of the whole service ask."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from pipelines._ray import worker_environment
from tests.artifacts import texts_for
from tests.runs import kill_with_children
from tests.services import COUNT

READY_SECONDS = 200


@dataclass
class Service:
    """The running job, and the lines it has printed."""

    process: subprocess.Popen[str]
    address: str
    port: int
    index: Path
    lines: list[str] = field(default_factory=list)
    news: queue.Queue[str] = field(default_factory=queue.Queue)

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self.news.put(line)
        self.news.put("")

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in below if f"ServeReplica:rayvec:{deployment}" in " ".join(one.cmdline())]

    def kill_everything(self) -> None:
        """End every process of the service as a power cut would, without a chance to finish anything."""
        kill_with_children(self.process)

    def wait_for(self, text: str) -> None:
        while text not in (line := self.news.get(timeout=READY_SECONDS)):
            assert line, f"the job ended before it said {text!r}:\n" + "\n".join(self.lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(index: Path, *settings: str) -> Iterator[Service]:
    """The job over an index, from when it is ready until the block ends, if it has not ended before."""
    port = free_port()
    command = [sys.executable, "-m", "jobs.serve", "--recipe", "hash.serve"]
    options = [f"index={index}", f"port={port}", *settings]
    process = subprocess.Popen(
        command + [part for option in options for part in ("--set", option)],
        env={**os.environ, **worker_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    service = Service(process, f"http://127.0.0.1:{port}", port, index)
    reader = threading.Thread(target=service.read)
    reader.start()
    try:
        service.wait_for("ready in")
        yield service
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(10)
        assert process.stdout
        process.stdout.close()


def search(service: Service, **body: object) -> httpx.Response:
    return httpx.post(f"{service.address}/v1/search", json=body, timeout=30)


@contextmanager
def half_sent(service: Service, **body: object) -> Iterator[Callable[[], http.client.HTTPResponse]]:
    """A search of which half is sent: under way until what is given is called, which sends the rest."""
    content = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.putrequest("POST", "/v1/search")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content[:9])

    def finish() -> http.client.HTTPResponse:
        connection.send(content[9:])
        return connection.getresponse()

    time.sleep(0.5)  # until a gateway reads it
    yield finish
    connection.close()


def check_drain(service: Service, seconds: float = 1.0) -> None:
    """SIGTERM while a search is under way: that one is answered, new ones get 503 or no connection."""
    with half_sent(service, query=texts_for(COUNT)[5], k=1, mode="dense") as finish:
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("finishing")
        answers, end = [], time.monotonic() + 20
        while not answers or answers[-1].status_code == 200:
            assert time.monotonic() < end, "it takes new requests"
            answers.append(search(service, query="x", k=1))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answers += [search(service, query="x", k=1), httpx.get(f"{service.address}/ready")]
        alive = httpx.get(f"{service.address}/health")
        answer = finish()
        assert (answer.status, json.load(answer)["results"][0]["hits"][0]["id"]) == (200, "doc-5")
    with suppress(httpx.TransportError):
        while time.monotonic() < end + 60:
            answers.append(search(service, query="x", k=1))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in refused} == {(503, "stopping")}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert alive.status_code == 200


@contextmanager
def asking(service: Service, clients: int) -> Iterator[list[httpx.Response]]:
    """Some clients, each asking one search after another while the block runs; at the end, all their answers."""
    answers: list[httpx.Response] = []
    stop = threading.Event()
    texts = texts_for(COUNT)

    def ask(number: int) -> None:
        while not stop.is_set():
            answers.append(search(service, query=f"{texts[len(answers) % COUNT]} {number}", k=COUNT, mode="dense"))

    with ThreadPoolExecutor(clients) as threads:
        done = [threads.submit(ask, number) for number in range(clients)]
        try:
            yield answers
        finally:
            stop.set()
        for one in done:
            one.result()
