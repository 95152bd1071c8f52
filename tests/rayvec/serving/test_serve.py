"""The whole service: `jobs/serve.py` as a process, Ray Serve, a real port, and the clients that users have."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from pipelines._ray import worker_environment
from rayvec.modeling.hash_encoder import HashEncoder
from tests.artifacts import texts_for
from tests.services import COUNT, MODEL

READY_SECONDS = 200
TEXT = "sort the list in place"


@dataclass
class Service:
    """The running job, and the lines it has printed."""

    process: subprocess.Popen[str]
    address: str
    port: int
    lines: list[str] = field(default_factory=list)
    news: queue.Queue[str] = field(default_factory=queue.Queue)

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self.news.put(line)
        self.news.put("")

    def wait_for(self, text: str) -> None:
        while text not in (line := self.news.get(timeout=READY_SECONDS)):
            assert line, f"the job ended before it said {text!r}:\n" + "\n".join(self.lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def service(index: Path) -> Iterator[Service]:
    port = free_port()
    command = [sys.executable, "-m", "jobs.serve", "--recipe", "hash.serve"]
    options = [f"index={index}", f"port={port}", "limits.in_flight=8"]
    process = subprocess.Popen(
        command + [part for option in options for part in ("--set", option)],
        env={**os.environ, **worker_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    service = Service(process, f"http://127.0.0.1:{port}", port)
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


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def search(service: Service, **body: object) -> httpx.Response:
    return httpx.post(f"{service.address}/v1/search", json=body, timeout=30)


def test_openai_client_reads_the_encoders_vectors(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(input=[TEXT, "json"], model=MODEL)  # the client asks for base64 by itself
    np.testing.assert_array_equal(
        np.array([row.embedding for row in answer.data], np.float32), HashEncoder(64).encode([TEXT, "json"])
    )


def test_openai_client_reads_floats_and_fewer_dimensions(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(input=TEXT, model=MODEL, encoding_format="float", dimensions=16)
    head = HashEncoder(64).encode([TEXT])[0, :16]
    np.testing.assert_allclose(answer.data[0].embedding, head / np.linalg.norm(head), rtol=1e-6)


def test_openai_client_lists_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == [MODEL]


def test_openai_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(input=TEXT, model="another")
    with pytest.raises(openai.UnprocessableEntityError) as empty:
        client.embeddings.create(input=[], model=MODEL)
    assert (unknown.value.code, empty.value.param) == ("model_not_found", "input")


def test_errors_of_other_processes_keep_their_shape(service: Service) -> None:
    """The encoder's refusal is raised in its replica, and crosses Ray as what it is."""
    answer = search(service, query="x", mode="dense", instruction="a " * 600)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "instruction")


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_search(service: Service, mode: str) -> None:
    (result,) = search(service, query=texts_for(COUNT)[5], k=2, mode=mode).json()["results"]
    assert result["hits"][0]["id"] == "doc-5"


def test_many_at_once_are_each_answered_or_told_to_wait(service: Service) -> None:
    texts = texts_for(COUNT)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda row: search(service, query=texts[row % COUNT], k=1), range(48)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    for row, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["results"][0]["hits"][0]["id"] == f"doc-{row % COUNT}"
        else:
            assert answer.headers["retry-after"] == "1"


def test_page_stands_at_the_root(service: Service) -> None:
    page = httpx.get(service.address, timeout=30)
    assert "<title>rayvec search</title>" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_body_over_the_limit_is_refused_by_the_real_server(service: Service) -> None:
    answer = httpx.post(f"{service.address}/v1/search", content=iter([b"x" * 1_000_000] * 3), timeout=30,
                        headers={"content-type": "application/json"})  # fmt: skip
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_sigterm_ends_it_drained_and_quietly(service: Service) -> None:
    """The last test: it takes the service down."""
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0
    service.wait_for("served_seconds")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", service.port)) != 0
    start, ready, finishing, done, *facts = service.lines
    assert start.startswith(f"serve: {COUNT} documents of ")
    assert ready.startswith("serve: ready in ")
    assert [finishing, done] == ["serve: finishing the requests under way", "serve: done"]
    assert [fact.split()[0] for fact in facts] == ["index", "version", "served_seconds"]
