"""What bounds a request: places, time, and a part that does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.serving.config import Limits
from tests.services import MODEL, Client


class Slow(HashEncoder):
    """Encodes only once released."""

    def __init__(self) -> None:
        super().__init__(64)
        self.release = threading.Event()

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        self.release.wait(10)
        return super().encode_tokens(batch)


class Broken(HashEncoder):
    """Gives NaN for one text, and fails for another."""

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        if batch.lengths.max() > 5:
            raise RuntimeError("secret detail of the inside")
        return super().encode_tokens(batch) * np.nan


@pytest.fixture
def slow(index: Path) -> Iterator[Client]:
    encoder = Slow()
    client = Client(index, Limits(in_flight=2, timeout_seconds=0.3), encoder=encoder)
    yield client
    encoder.release.set()
    client.close()


@pytest.fixture
def broken(index: Path) -> Iterator[Client]:
    client = Client(index, encoder=Broken(64))
    yield client
    client.close()


def together(client: Client, count: int) -> list[httpx.Response]:
    """Answers to as many requests at once."""

    async def run() -> list[httpx.Response]:
        body = {"input": "x", "model": MODEL}
        return await asyncio.gather(*(client.http.post("/v1/embeddings", json=body) for _ in range(count)))

    return client.runner.run(run())


def test_over_the_places_requests_are_told_to_wait_at_once(slow: Client) -> None:
    answers = together(slow, 5)
    assert sorted(answer.status_code for answer in answers) == [429, 429, 429, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_where_there_is_no_room_a_request_is_refused_before_its_body_is_read(slow: Client) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"{")
        yield b"{"

    async def run() -> list[httpx.Response]:
        waiting = [slow.http.post("/v1/embeddings", json={"input": "x", "model": MODEL}) for _ in range(2)]
        tasks = [asyncio.create_task(one) for one in waiting]
        while not slow.gateway.is_full:
            await asyncio.sleep(0.001)
        refused = [await slow.http.post(path, content=body()) for path in ("/v1/search", "/v1/documents")]
        others = [await slow.http.get(path) for path in ("/health", "/ready", "/v1/models", "/v1/indexes")]
        await asyncio.gather(*tasks)
        return [*refused, *others]

    answers = slow.runner.run(run())
    assert [answer.status_code for answer in answers] == [429, 429, 200, 200, 200, 200]
    assert read == []


def test_a_request_that_takes_too_long_is_given_up(slow: Client) -> None:
    (answer,) = together(slow, 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    assert "0.3 s" in answer.json()["error"]["message"]


def test_places_come_back_after_failures(slow: Client) -> None:
    assert [together(slow, 2)[0].status_code for _ in range(3)] == [503, 503, 503]


def test_lexical_search_and_readiness_do_not_wait_for_the_encoder(slow: Client) -> None:
    assert slow.post("/v1/search", query="list", mode="lexical").status_code == 200
    assert slow.get("/ready").status_code == 200


def test_a_vector_that_is_not_finite_is_never_sent(broken: Client) -> None:
    answer = broken.post("/v1/embeddings", input="x", model=MODEL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "encoder_not_finite")


def test_a_failure_inside_shows_nothing_of_the_inside(broken: Client) -> None:
    answer = broken.post("/v1/embeddings", input="a b c d e f g h", model=MODEL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
