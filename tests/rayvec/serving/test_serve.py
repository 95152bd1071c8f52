"""The whole service: `jobs/serve.py` as a process, Ray Serve, a real port, and the clients that users have."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from rayvec import Client
from rayvec.modeling.hash_encoder import HashEncoder
from tests.artifacts import texts_for
from tests.served import READY_SECONDS, Service, asking, check_drain, search, serving
from tests.services import COUNT, MODEL, write_service_index

pytestmark = pytest.mark.cluster

TEXT = "sort the list in place"


@pytest.fixture(scope="module")
def service(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    index = shutil.copytree(index, tmp_path_factory.mktemp("served") / "index")  # its versions change here
    with serving(
        index, "limits.in_flight=8", "replicas.encoder=2", "replicas.retriever=2", "writable=true", "mcp=true"
    ) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


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


def test_the_map_comes_from_the_retriever_and_hits_are_put_on_it(service: Service) -> None:
    answer = httpx.get(f"{service.address}/v1/map", timeout=30).json()
    (result,) = search(service, query=TEXT, k=3, include=["map"]).json()["results"]
    places = dict(zip(answer["ids"], zip(answer["x"], answer["y"], strict=True), strict=True))
    assert len(places) == COUNT
    assert [hit["map"] for hit in result["hits"]] == [
        pytest.approx(places[hit["id"]], abs=2e-4) for hit in result["hits"]
    ]


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


def test_an_assistant_finds_by_its_tools(service: Service) -> None:
    from mcp import Client as Assistant

    async def ask() -> str:
        async with Assistant(f"{service.address}/mcp") as assistant:
            found = await assistant.call_tool("search", {"query": texts_for(COUNT)[5], "k": 1})
            assert found.structured_content is not None
            return str(found.structured_content["results"][0]["id"])

    assert asyncio.run(ask()) == "doc-5"


def test_langchain_s_openai_embeddings_read_the_encoder_s_vectors(service: Service) -> None:
    from langchain_openai import OpenAIEmbeddings

    # Without the check it would tokenize with OpenAI's tokenizer, and send ids that mean other words here.
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{service.address}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(embeddings.embed_documents([TEXT, "json"]), HashEncoder(64).encode([TEXT, "json"]))
    np.testing.assert_allclose(embeddings.embed_query(TEXT), HashEncoder(64).encode([TEXT])[0])


def test_llamaindex_s_openai_embedding_reads_the_encoder_s_vectors(service: Service) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    embedding = OpenAIEmbedding(model_name=MODEL, api_base=f"{service.address}/v1", api_key="none")
    np.testing.assert_allclose(
        embedding.get_text_embedding_batch([TEXT, "json"]), HashEncoder(64).encode([TEXT, "json"])
    )
    np.testing.assert_allclose(embedding.get_query_embedding(TEXT), HashEncoder(64).encode([TEXT])[0])


def test_the_typed_client_searches_and_embeds(service: Service) -> None:
    with Client(service.address) as client:
        assert client.search(texts_for(COUNT)[3], k=1).results[0].hits[0].id == "doc-3"
        np.testing.assert_array_equal(client.embed([TEXT]), HashEncoder(64).encode([TEXT]))


@pytest.mark.parametrize("deployment", ["QueryEncoder", "Retriever"])
def test_no_request_fails_while_a_replica_is_killed(service: Service, deployment: str) -> None:
    before = service.replicas(deployment)
    assert len(before) == 2
    with asking(service, 4) as answers:
        time.sleep(0.5)
        before[0].kill()
        seen = len(answers)
        while len(answers) < seen + 100:
            time.sleep(0.05)
    assert {answer.status_code for answer in answers} == {200}
    end = time.monotonic() + READY_SECONDS
    while len(service.replicas(deployment)) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    assert len(service.replicas(deployment)) == 2, "it is started again"


def test_slow_clients_leave_the_others_alone(service: Service) -> None:
    with ExitStack() as held:
        for _ in range(300):
            half = held.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            half.sendall(b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: appl")
        assert [search(service, query=TEXT, k=1).status_code for _ in range(20)] == [200] * 20


def test_the_index_changes_under_load_and_no_answer_is_of_two_versions(service: Service) -> None:
    with asking(service, 4) as answers:
        end = time.monotonic() + READY_SECONDS
        while not answers:  # of the version before
            assert time.monotonic() < end
            time.sleep(0.01)
        write_service_index(service.index, count=COUNT - 10)
        while not all(
            answer.json()["index_version"] == "v2" for answer in answers[-20:] or [search(service, query=TEXT)]
        ):
            assert time.monotonic() < end, "the new version was never served"
            time.sleep(0.1)
    assert {answer.status_code for answer in answers} == {200}
    hits = {(a.json()["index_version"], len(a.json()["results"][0]["hits"])) for a in answers}
    assert hits == {("v1", COUNT), ("v2", COUNT - 10)}


def test_writes_while_others_search_are_all_kept_and_found_by_every_copy(service: Service) -> None:
    def write(number: int) -> str:
        with Client(service.address) as client:
            document = {"id": f"m-{number}", "text": f"marmot number{number}", "payload": {"line": number}}
            answer = client.upsert([document], wait=number % 4 == 0)  # type: ignore[list-item]
            assert (answer.added, answer.live) == (1, number % 4 == 0)
            found = client.search(f"marmot number{number}", k=1, min_index_version=answer.index_version)
            assert found.results[0].hits[0].id == f"m-{number}"
            return answer.index_version

    with asking(service, 3) as answers, ThreadPoolExecutor(4) as threads:
        made = list(threads.map(write, range(32)))
        newest = max(made, key=lambda name: int(name[1:]))
        write_service_index(service.index, count=COUNT)  # a job builds the index anew: what was written goes with it
        seen = len(answers)
        while len(answers) < seen + 50:
            time.sleep(0.05)
    assert {answer.status_code for answer in answers} == {200}
    assert len(set(made)) <= 32 and int(newest[1:]) > 3
    with Client(service.address) as client:
        again = client.upsert([{"id": "m-1", "text": "marmot number1"}], wait=True)
        assert (again.added, again.live, client.ready().documents) == (1, True, COUNT + 1)
        gone = client.delete(["m-1", "m-2"], wait=True)
        assert (gone.deleted, gone.unknown_ids) == (1, ["m-2"])
        [index] = client.indexes()
        assert (index.documents, index.writable, index.version) == (COUNT, True, gone.index_version)


def test_one_document_is_deleted_by_its_path(service: Service) -> None:
    answer = httpx.delete(f"{service.address}/v1/documents/doc-3?wait=true", timeout=30)
    assert (answer.status_code, answer.json()["deleted"]) == (200, 1)
    assert "doc-3" not in search(service, query=texts_for(COUNT)[3], k=COUNT).text


def test_page_stands_at_the_root(service: Service) -> None:
    page = httpx.get(service.address, headers={"x-request-id": "mine"}, timeout=30)
    assert page.headers.get_list("x-request-id") == ["mine"]
    assert "<title>rayvec search</title>" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_body_over_the_limit_is_refused_by_the_real_server(service: Service) -> None:
    answer = httpx.post(f"{service.address}/v1/search", content=iter([b"x" * 1_000_000] * 5), timeout=30,
                        headers={"content-type": "application/json"})  # fmt: skip
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_sigterm_ends_it_drained_and_quietly(service: Service) -> None:
    """The last test: it takes the service down."""
    check_drain(service)
    assert service.process.wait(60) == 0
    service.wait_for("served_seconds")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", service.port)) != 0
    start, ready, finishing, done, *facts = [line for line in service.lines if "(raylet)" not in line]
    assert start.startswith(f"serve: {COUNT} documents of ")
    assert ready.startswith("serve: ready in ")
    assert [finishing, done] == ["serve: finishing the requests under way", "serve: done"]
    assert [fact.split()[0] for fact in facts] == ["index", "served_seconds"]
