"""The typed client against a server on a real port."""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.client import AsyncClient, Client, ServiceError, _vectors
from rayvec.serving.schemas import Embedding, EmbeddingAnswer, Usage
from rayvec.serving.security import Keys, new_key, parse_line
from tests.served import free_port
from tests.services import MODEL, listening, write_service_index
from tests.services import Client as InProcess

QUERY = "sort the list in place"


class Faltering:
    """Refuses the first `times` requests for want of room, then passes them on."""

    def __init__(self, app: Any, times: int) -> None:
        self.app, self.left, self.seen = app, times, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen += 1
        if self.left == 0:
            await self.app(scope, receive, send)
            return
        self.left -= 1
        await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"0")]})
        await send({"type": "http.response.body", "body": b"no room"})


@pytest.fixture(scope="module")
def address(index: Path) -> Iterator[str]:
    service = InProcess(index)
    with listening(service.app) as address:
        yield address
    service.close()


def test_search_answers_in_types(address: str) -> None:
    with Client(address) as client:
        answer = client.search(QUERY, k=2, mode="dense", include=["text"])
        several = client.search([QUERY, "open a socket"], k=1)
    assert [hit.rank for hit in answer.results[0].hits] == [1, 2]
    assert answer.results[0].hits[0].text is not None and "sort the list" in answer.results[0].hits[0].text
    assert answer.index_version == "v1" and len(several.results) == 2


def test_embed_gives_the_encoder_s_vectors_of_more_texts_than_one_request_takes(address: str) -> None:
    texts = [f"text number {i}" for i in range(150)]
    with Client(address) as client:
        np.testing.assert_array_equal(client.embed(texts), HashEncoder(64).encode(texts))
        assert client.embed(texts[:3], dimensions=16).shape == (3, 16)
        assert client.embed([]).shape == (0, 64)
        np.testing.assert_array_equal(client.embed(texts[0], input_type="query"), HashEncoder(64).encode(texts[:1])[0])
        assert client.model().id == MODEL and client.ready().index_version == "v1"


def test_vectors_are_of_the_encoder_that_answers_and_never_of_two(address: str, tmp_path: Path) -> None:
    """A service whose encoder was replaced under the same name, while a client goes on."""
    other = InProcess(write_service_index(tmp_path / "index", "hash:32"), encoder=HashEncoder(32))
    with listening(other.app) as new, Client(address) as client:
        assert client.embed("a text").shape == (64,)
        other.gateway._model = MODEL
        client._http.base_url = new
        assert client.embed("a text").shape == (32,) and client.embed(["a", "b"]).shape == (2, 32)
    other.close()
    mixed = [embedding_answer(dim) for dim in (64, 32)]
    with pytest.raises(ServiceError, match="changed to another encoder"):
        _vectors(mixed, 2, 64)


def embedding_answer(dim: int) -> EmbeddingAnswer:
    row = base64.b64encode(np.ones(dim, "<f4").tobytes()).decode()
    usage = Usage(prompt_tokens=1, total_tokens=1)
    rows = [Embedding(index=0, embedding=row)]
    return EmbeddingAnswer(data=rows, model=MODEL, usage=usage, index_version="v1", truncated=[])


def test_search_by_vectors_and_by_documents(address: str) -> None:
    with Client(address) as client:
        document = client.document("doc-3")
        assert document.text is not None
        by_vector = client.search(vectors=HashEncoder(64).encode([document.text]), k=3).results[0].hits
        alike = client.search(like=["doc-3"], k=2).results[0].hits
        assert client.search(like="doc-3", k=2).results[0].hits == alike
        one = client.embed(document.text)
        assert client.search(vectors=one, k=3).results == client.search(vectors=[one], k=3).results
        assert len(client.map(limit=5).ids) == 5
        with pytest.raises(ServiceError, match="there is no document 'a/b'"):
            client.document("a/b")
    assert [hit.id for hit in by_vector] == ["doc-3", *(hit.id for hit in alike)]


def test_the_client_of_asyncio_answers_the_same(address: str) -> None:
    async def ask() -> tuple[Any, np.ndarray, str]:
        async with AsyncClient(address) as client:
            answers = await asyncio.gather(*(client.search(QUERY, k=3, mode="lexical") for _ in range(4)))
            return answers, await client.embed(["a text"]), (await client.ready()).index_version

    answers, vectors, version = asyncio.run(ask())
    with Client(address) as client:
        expected = client.search(QUERY, k=3, mode="lexical").results
        np.testing.assert_array_equal(vectors, client.embed(["a text"]))
    assert all(answer.results == expected for answer in answers) and version == "v1"


def test_what_the_service_says_is_raised(address: str) -> None:
    with Client(address) as client, pytest.raises(ServiceError, match="rerank") as raised:
        client.search(QUERY, rerank=3)
    assert (raised.value.status, raised.value.code, raised.value.param) == (422, "no_reranker", "rerank")


def test_a_request_that_found_no_room_is_sent_again(address: str, index: Path) -> None:
    service = InProcess(index)
    faltering = Faltering(service.app, times=2)
    with listening(faltering) as address:
        with Client(address, retries=2) as client:
            assert client.search(QUERY, k=1).results[0].hits
        faltering.left = 1
        with Client(address, retries=0) as client, pytest.raises(ServiceError) as raised:
            client.search(QUERY)
    service.close()
    assert faltering.seen == 4 and (raised.value.status, raised.value.code) == (503, "no_answer")


def test_documents_are_written_and_the_index_is_listed_by_either_client(index: Path, tmp_path: Path) -> None:
    service = InProcess(Path(shutil.copytree(index, tmp_path / "index")), writable=True)

    async def write(address: str) -> tuple[Any, Any, Any]:
        async with AsyncClient(address) as client:
            added = await client.upsert([{"id": "b", "text": "marmot two"}], wait=True)
            gone = await client.delete(["b", "none"], wait=True)
            return added, gone, await client.indexes()

    with listening(service.app) as address, Client(address) as client:
        answer = client.upsert([{"id": "a", "title": "One", "text": "marmot", "payload": {"line": 5}}])
        found = client.search("marmot", k=1, min_index_version=answer.index_version).results[0].hits
        assert client.upsert([*found, client.document("doc-3")]).unchanged == 2  # as they are
        hit = (
            client.search("marmot", k=1, include=["vector"], min_index_version=answer.index_version).results[0].hits[0]
        )
        np.testing.assert_allclose(hit.vector, HashEncoder(64).encode(["One\nmarmot"])[0], atol=1e-6)
        added, gone, [listed] = asyncio.run(write(address))
        assert (added.added, gone.deleted, gone.unknown_ids) == (1, 1, ["none"])
        assert listed == client.indexes()[0] and listed.version == gone.index_version
        with pytest.raises(ServiceError, match="it has line") as raised:
            client.upsert([{"id": "a", "text": "x", "payload": {"lime": 1}}])
        assert (client.delete(["a"], wait=True).deleted, raised.value.status) == (1, 422)
        client.upsert([{"id": id_, "text": "badger"} for id_ in ("p", "1", "p1")])
        assert client.delete("p1", wait=True).deleted == 1 and client.document("p").id == "p"
    service.close()


def test_the_address_may_be_the_one_that_openai_s_clients_are_given(address: str) -> None:
    with Client(f"{address}/v1/") as client:
        assert client.model().id == MODEL


def test_texts_are_reranked(index: Path) -> None:
    service = InProcess(index, reranker="tests.rayvec.serving.test_search:shortest_first")
    with listening(service.app) as address, Client(address) as client:
        answer = client.rerank("q", ["bb", "a"], top_n=1, return_documents=True)
    service.close()
    (best,) = answer.results
    assert best.document is not None and (best.index, best.document.text) == (1, "a")


def test_a_service_that_is_not_there_is_told_as_any_other_error() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with Client(address, retries=0) as client, pytest.raises(ServiceError, match="check the address") as raised:
        client.search("x")
    assert (raised.value.status, raised.value.code) == (0, "no_connection")


def test_an_answer_that_does_not_come_in_time_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"

        async def ask() -> None:
            async with AsyncClient(address, timeout=0.1, retries=0) as client:
                await client.ready()

        with pytest.raises(ServiceError, match="did not answer in time") as raised:
            asyncio.run(ask())
    assert raised.value.code == "timeout"


def test_the_key_goes_with_each_request(index: Path) -> None:
    key, line = new_key("alice")
    known = parse_line(line)
    assert known is not None
    service = InProcess(index, keys=Keys([known]))
    with listening(service.app) as address:
        with Client(address, api_key=key) as client:
            assert client.search(QUERY, k=1).results
        with Client(address, api_key="rv-wrong") as client, pytest.raises(ServiceError) as raised:
            client.model()
    service.close()
    assert (raised.value.status, raised.value.code) == (401, "invalid_api_key")


def test_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys; from rayvec import Client; print(sorted({'torch', 'ray', 'faiss', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
