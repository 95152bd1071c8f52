"""What bounds a request: places, time, and a part that does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.serving.config import Limits, SearchDefaults
from rayvec.serving.door import FrontDoor, middlewares
from tests.artifacts import texts_for, write_index
from tests.services import COUNT, MODEL, Client


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
        while not slow.gateway.admission.is_full:
            await asyncio.sleep(0.001)
        refused = [await slow.http.post(path, content=body()) for path in ("/v1/search", "/v1/documents")]
        others = [await slow.http.get(path) for path in ("/health", "/ready", "/v1/models", "/v1/indexes")]
        await asyncio.gather(*tasks)
        return [*refused, *others]

    answers = slow.runner.run(run())
    assert [answer.status_code for answer in answers] == [429, 429, 200, 200, 200, 200]
    assert read == []


def test_where_serve_lets_us_stand_before_it_only_what_is_refused_passes_it_by(slow: Client) -> None:
    through: list[str] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        through.append(scope["path"])
        await slow.app(scope, receive, send)

    (middleware,) = middlewares()
    front = cast(ASGIApp, middleware.cls)(serve)  # type: ignore[call-arg, arg-type]

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as http:
            waiting = [
                asyncio.create_task(http.post("/v1/embeddings", json={"input": "x", "model": MODEL})) for _ in range(2)
            ]
            while not slow.gateway.admission.is_full:
                await asyncio.sleep(0.001)
            answers = [await http.post("/v1/search", content=b"{"), await http.get("/-/routes"), await http.get("/")]
            await asyncio.gather(*waiting)
        return [answer.status_code for answer in answers]

    FrontDoor.stands_before(slow.gateway.admission, slow.app)
    try:
        assert slow.runner.run(run()) == [429, 404, 200]
    finally:
        FrontDoor._inside = None
    assert through == ["/v1/embeddings", "/v1/embeddings", "/-/routes", "/"]


def test_an_id_that_cannot_be_one_is_not_shown_to_serve_which_would_send_it_back(client: Client) -> None:
    shown = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        shown.append(dict(scope["headers"]).get(b"x-request-id"))
        await client.app(scope, receive, send)

    async def run() -> None:
        transport = httpx.ASGITransport(FrontDoor(serve))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for given in ("a/b", "my id", "x" * 129):
                await http.get("/health", headers={"x-request-id": given})

    FrontDoor.stands_before(client.gateway.admission, client.app)
    try:
        client.runner.run(run())
    finally:
        FrontDoor._inside = None
    assert shown == [b"a/b", None, None]


def test_a_request_that_takes_too_long_is_given_up(slow: Client) -> None:
    (answer,) = together(slow, 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    assert "0.3 s" in answer.json()["error"]["message"]


def draining(client: Client, seconds: float, release: Callable[[], None]) -> list[httpx.Response]:
    """Answers to a request that was under way when the gateway was drained, and to those that came then."""

    async def run() -> list[httpx.Response]:
        under_way = asyncio.create_task(client.http.post("/v1/embeddings", json={"input": "x", "model": MODEL}))
        while client.gateway.admission.is_full is False:
            await asyncio.sleep(0.001)
        drained = asyncio.create_task(client.gateway.admission.drain(seconds))
        await asyncio.sleep(0)
        new = [await client.http.get(path) for path in ("/ready", "/v1/models", "/v1/search", "/health", "/metrics")]
        assert not drained.done()
        release()
        answer = await under_way
        await drained
        assert await client.gateway.admission.drain(1.0), "nothing is under way any more"
        return [answer, *new]

    return client.runner.run(run())


@pytest.mark.parametrize(("seconds", "released", "status"), [(10.0, True, 200), (1.0, False, 503)])
def test_a_gateway_that_is_drained_finishes_what_is_under_way_and_takes_nothing_new(
    index: Path, seconds: float, released: bool, status: int
) -> None:
    encoder = Slow()
    client = Client(index, Limits(in_flight=1), encoder=encoder)
    answer, *refused, alive, metrics = draining(client, seconds, encoder.release.set if released else lambda: None)
    assert answer.status_code == status
    assert [one.status_code for one in refused] == [503] * 3
    for one in refused if released else [answer, *refused]:
        assert one.json()["error"]["code"] == "stopping"
        assert (one.headers["retry-after"], one.headers["connection"]) == ("1", "close")
    assert (alive.status_code, metrics.status_code) == (200, 200)
    encoder.release.set()
    client.close()


def test_when_the_encoder_has_changed_the_next_try_is_encoded_anew(index: Path) -> None:
    client = Client(index)
    ask = {"query": "sort", "mode": "dense", "k": 1}
    first = client.post("/v1/search", **ask)
    retriever: Any = client.gateway._retriever
    retriever._fingerprint = "of another"  # as a copy that was replaced sooner than the encoder's
    refused = client.post("/v1/search", **ask)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "encoder_changed")
    assert refused.headers["retry-after"] == "1"
    retriever._fingerprint = HashEncoder(64).fingerprint.short
    again = client.post("/v1/search", **ask)
    assert (again.status_code, again.json()["usage"]) == (200, first.json()["usage"])
    client.close()


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


class Told(HashEncoder):
    """Its vectors are of the instruction too: the encoder of a model, in short."""

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        return super().encode([f"{instruction or ''} {text}" for text in texts])

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        return super().tokenize([f"{instruction or ''} {text}" for text in texts])


INSTRUCTIONS = {"query": "find the function", "document": "a document of code"}


@pytest.fixture
def told(index: Path) -> Iterator[Client]:
    client = Client(index, encoder=Told(64), instructions=INSTRUCTIONS)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("given", "read"),
    [({}, INSTRUCTIONS["query"]), ({"instruction": "the other"}, "the other"), ({"instruction": ""}, None)],
)
def test_a_query_is_read_after_the_encoder_s_instruction_or_the_request_s(
    told: Client, given: dict[str, str], read: str | None
) -> None:
    vectors = Told(64).encode(["sort the list"], read)
    expected = told.post("/v1/search", vectors=vectors.tolist(), k=COUNT).json()["results"]
    found = told.post("/v1/search", query="sort the list", mode="dense", k=COUNT, **given).json()["results"]
    assert found == expected


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, None),
        ({"input_type": "query"}, INSTRUCTIONS["query"]),
        ({"input_type": "document"}, INSTRUCTIONS["document"]),
        ({"input_type": "query", "instruction": ""}, None),
    ],
)
def test_vectors_are_of_queries_or_of_documents_where_that_is_said(
    told: Client, given: dict[str, str], read: str | None
) -> None:
    answer = told.post("/v1/embeddings", model=MODEL, input="sort the list", **given).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], Told(64).encode(["sort the list"], read)[0], rtol=1e-6)


def test_token_ids_have_no_instruction(told: Client) -> None:
    answer = told.post("/v1/embeddings", model=MODEL, input=[1, 2], input_type="query")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "instruction")


def test_instructions_are_told_with_the_model(told: Client) -> None:
    assert told.get("/v1/models").json()["data"][0]["instructions"] == INSTRUCTIONS


@pytest.mark.parametrize(
    ("defaults", "asked", "as_if"),
    [
        ({}, {}, {"mode": "hybrid", "fusion": "weighted"}),
        ({"mode": "dense"}, {}, {"mode": "dense"}),
        ({"mode": "dense"}, {"mode": "lexical"}, {"mode": "lexical"}),
        ({"fusion": "rrf", "dense_weight": 3.0}, {}, {"mode": "hybrid", "fusion": "rrf", "dense_weight": 3.0}),
        ({"fusion": "rrf", "dense_weight": 3.0}, {"fusion": "weighted"}, {"mode": "hybrid", "fusion": "weighted"}),
    ],
)
def test_what_a_search_does_not_say_is_as_the_service_has_it(
    index: Path, defaults: dict[str, Any], asked: dict[str, Any], as_if: dict[str, Any]
) -> None:
    client = Client(index, defaults=SearchDefaults(**defaults))
    query = {"query": "sort the list in place", "k": COUNT}
    found, expected = (client.post("/v1/search", **query, **more).json() for more in (asked, as_if))
    assert (found["mode"], found["results"]) == (expected["mode"], expected["results"])
    client.close()


def test_without_words_an_index_is_searched_by_vectors(tmp_path: Path) -> None:
    encoder, texts = HashEncoder(64), texts_for(8)
    write_index(tmp_path, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder=MODEL, lexical=False)
    client = Client(tmp_path)
    assert client.post("/v1/search", query=texts[2]).json()["mode"] == "dense"
    client.close()
