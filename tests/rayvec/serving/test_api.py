"""The HTTP interface over a real index and encoder, in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving import embedded
from rayvec.serving.config import Limits
from rayvec.serving.pages import PAGE
from rayvec.serving.schemas import MAX_CHARACTERS, MAX_K, MAX_QUERIES, MAX_TEXTS, Document, EmbeddingRequest
from rayvec.serving.security import Keys, new_key, parse_line
from tests.artifacts import texts_for
from tests.services import COUNT, MODEL, Client, listening

TEXT = "sort the list in place"


@pytest.fixture(scope="module")
def narrow(index: Path) -> Iterator[Client]:
    client = Client(index, Limits(body_bytes=1_000, request_tokens=20))
    yield client
    client.close()


def hits(answer: httpx.Response, query: int = 0) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"][query]["hits"]
    return found


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


# What is there


def test_health_needs_neither_model_nor_index(client: Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_ready_names_model_and_index(client: Client) -> None:
    assert client.get("/ready").json() == {
        "status": "ready",
        "model": MODEL,
        "index_version": "v1",
        "documents": COUNT,
        "modes": ["hybrid", "dense", "lexical"],
        "mode": "hybrid",
        "refused": None,
        "missing_parts": [],
        "recall": None,
    }


def test_models_lists_the_one_that_is_served(client: Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["dimensions"], model["max_input_tokens"]) == (MODEL, 64, 512)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_monitors_may_ask_by_head(client: Client, path: str) -> None:
    answer = client.ask("HEAD", path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_one_vector_where_a_list_of_them_is_asked_for_is_told(client: Client) -> None:
    error = client.post("/v1/search", vectors=[0.5] * 64).json()["error"]
    assert "a list of vectors, and not one vector" in error["message"] and error["param"] == "vectors"


def test_openapi_describes_every_route(client: Client) -> None:
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/v1/search", "/v1/embeddings", "/v1/models", "/v1/models/{id}", "/v1/documents", "/v1/documents/{id}",
        "/v1/rerank", "/v2/rerank", "/v1/indexes", "/v1/map", "/health", "/ready", "/metrics",
    }  # fmt: skip


def test_operations_have_names_of_their_own(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(set(names)) == len(names) and {"search", "embeddings", "delete_one", "ready"} <= set(names)


def test_openapi_tells_how_a_key_is_sent_and_whether_it_must_be(client: Client, index: Path) -> None:
    key, line = new_key("alice")
    guarded = Client(index, keys=Keys([one for one in [parse_line(line)] if one]))
    needed = guarded.get("/openapi.json", headers={"authorization": f"Bearer {key}"}).json()
    guarded.close()
    assert needed["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert needed["security"] == [{"bearer": []}]
    assert needed["paths"]["/health"]["get"]["security"] == [] and "security" not in needed["paths"]["/metrics"]["get"]
    assert client.get("/openapi.json").json()["security"] == [{}, {"bearer": []}]


@pytest.mark.parametrize("path", PAGE)
def test_page_is_sent_once_and_runs_only_its_own_script(client: Client, path: str) -> None:
    first = client.get(path)
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert "script-src 'self'" in first.headers["content-security-policy"]


# Search


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_search_puts_the_matching_document_first(client: Client, mode: str) -> None:
    found = hits(client.post("/v1/search", query=texts_for(COUNT)[5], k=3, mode=mode))
    assert found[0]["id"] == "doc-5"
    assert [hit["rank"] for hit in found] == [1, 2, 3]
    assert sorted((hit["score"] for hit in found), reverse=True) == [hit["score"] for hit in found]


def test_hit_carries_title_text_and_payload(client: Client) -> None:
    first = hits(client.post("/v1/search", query=texts_for(COUNT)[5], k=1))[0]
    assert (first["title"], first["text"], first["payload"]) == ("title 5", texts_for(COUNT)[5], {"line": 5})


@pytest.mark.parametrize(
    ("include", "text", "payload"),
    [([], None, None), (["text"], texts_for(6)[5], None), (["payload"], None, {"line": 5})],
)
def test_include_chooses_what_hits_carry(client: Client, include: list[str], text: str, payload: Any) -> None:
    first = hits(client.post("/v1/search", query=texts_for(COUNT)[5], k=1, include=include))[0]
    assert (first["text"], first["payload"]) == (text, payload)


def test_hybrid_hits_tell_their_place_in_both_rankings(client: Client) -> None:
    first = hits(client.post("/v1/search", query=texts_for(COUNT)[5], k=1, mode="hybrid"))[0]
    assert {name: signal["rank"] for name, signal in first["signals"].items()} == {"dense": 1, "lexical": 1}


def test_many_queries_are_answered_as_one_by_one(client: Client) -> None:
    queries = ["open a network socket", TEXT, "serialize json"]
    together = client.post("/v1/search", query=queries, k=4)
    alone = [hits(client.post("/v1/search", query=query, k=4)) for query in queries]
    assert [hits(together, i) for i in range(3)] == alone


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_k_over_the_index_gives_all_of_it(client: Client, mode: str) -> None:
    assert len(hits(client.post("/v1/search", query=TEXT, k=MAX_K, mode=mode))) == COUNT


def test_lexical_search_without_a_shared_word_finds_nothing(client: Client) -> None:
    assert hits(client.post("/v1/search", query="xylophone", mode="lexical")) == []


def test_lexical_search_uses_no_tokens(client: Client) -> None:
    text = "put the list in order"  # not asked before: a query that is known costs no tokens
    answers = [client.post("/v1/search", query=text, mode=mode).json() for mode in ("lexical", "dense")]
    assert [answer["usage"]["total_tokens"] for answer in answers] == [0, 6]


def test_long_query_is_cut_and_said_so(client: Client) -> None:
    answer = client.post("/v1/search", query=["word " * 600, TEXT], k=1).json()
    assert [result["truncated"] for result in answer["results"]] == [True, False]


# Embeddings


def test_embeddings_are_the_encoders_own(client: Client) -> None:
    answer = client.post("/v1/embeddings", input=[TEXT, "json"], model=MODEL)
    np.testing.assert_array_equal(vectors(answer), HashEncoder(64).encode([TEXT, "json"]))
    assert [row["index"] for row in answer.json()["data"]] == [0, 1]
    assert answer.json()["usage"] == {"prompt_tokens": 8, "total_tokens": 8}


def test_one_text_is_a_list_of_one(client: Client) -> None:
    np.testing.assert_array_equal(
        vectors(client.post("/v1/embeddings", input=TEXT, model=MODEL)),
        vectors(client.post("/v1/embeddings", input=[TEXT], model=MODEL)),
    )


def test_base64_holds_the_same_floats(client: Client) -> None:
    as_base64 = client.post("/v1/embeddings", input=TEXT, model=MODEL, encoding_format="base64").json()
    decoded = np.frombuffer(base64.b64decode(as_base64["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, vectors(client.post("/v1/embeddings", input=TEXT, model=MODEL))[0])


def test_token_ids_give_the_vectors_of_their_text(client: Client) -> None:
    ids = HashEncoder(64).tokenize([TEXT]).input_ids.tolist()[1:]  # what is given is pooled, so without the begin token
    expected = HashEncoder(64).encode([TEXT])
    for given in (ids, [ids]):
        np.testing.assert_array_equal(vectors(client.post("/v1/embeddings", input=given, model=MODEL)), expected)


def test_token_ids_over_the_limit_are_cut_and_named(client: Client) -> None:
    answer = client.post("/v1/embeddings", input=[[7] * 3, [7] * 600], model=MODEL).json()
    assert answer["truncated"] == [1]


def test_dimensions_keeps_the_head_at_length_1(client: Client) -> None:
    short = vectors(client.post("/v1/embeddings", input=TEXT, model=MODEL, dimensions=16))
    head = HashEncoder(64).encode([TEXT])[:, :16]
    np.testing.assert_allclose(short, head / np.linalg.norm(head), rtol=1e-6)


# Wrong requests: a 4xx in OpenAI's shape that names the field, and never a 5xx


def assert_refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), answer.text
    assert set(error) == {"message", "type", "code", "param"}
    assert error["message"]
    assert len(error["message"]) < 500
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("k", [0, -1, MAX_K + 1, 10**9, 10**30, 1.5, 1.0, 1e400, True, "3", [3]])
def test_k_must_be_a_number_in_bounds(client: Client, k: Any) -> None:
    body = json.dumps({"query": "x", "k": k}).replace("Infinity", "1e999")
    assert_refused(client.send("/v1/search", body), 422, "invalid_value", "k")


@pytest.mark.parametrize("query", [5, True, {"a": 1}, "", " \n\t", [], "\ud800", "x" * (MAX_CHARACTERS + 1)])
def test_query_must_be_text(client: Client, query: Any) -> None:
    assert_refused(client.send("/v1/search", json.dumps({"query": query})), 422, "invalid_value", "query")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": None},
        {"query": "x", "like": ["doc-1"]},
        {"like": ["doc-1"], "mode": "hybrid"},
        {"like": ["doc-1"], "rerank": 3},
        {"vectors": [[1.0]], "instruction": "find it"},
        {"vectors": [[1.0], [1.0, 2.0]]},
    ],
)
def test_a_search_is_for_one_kind_of_query(client: Client, body: dict[str, Any]) -> None:
    assert_refused(client.post("/v1/search", **body), 422, "invalid_value")


@pytest.mark.parametrize("vectors", [[[0.0] * 64], [[1.0] * 63], [[1e300] * 64]], ids=["zero", "short", "huge"])
def test_vectors_that_cannot_be_searched(client: Client, vectors: list[list[float]]) -> None:
    assert_refused(client.post("/v1/search", vectors=vectors), 422, "invalid_value", "vectors")


def test_a_search_by_vectors_is_the_dense_search_of_their_texts(client: Client) -> None:
    texts = texts_for(COUNT)[3:5]
    by_vectors = client.post("/v1/search", vectors=HashEncoder(64).encode(texts).tolist(), k=4).json()
    by_texts = client.post("/v1/search", query=texts, k=4, mode="dense").json()
    assert by_vectors["results"] == by_texts["results"] and by_vectors["mode"] == "dense"
    assert by_vectors["usage"]["total_tokens"] == 0


def test_documents_like_others_are_their_neighbours_without_themselves(client: Client) -> None:
    texts = texts_for(COUNT)
    results = client.post("/v1/search", like=["doc-3", "doc-4"], k=COUNT).json()["results"]
    for number, result in zip((3, 4), results, strict=True):
        found = hits(client.post("/v1/search", query=texts[number], k=COUNT, mode="dense"))
        expected = [(hit["id"], hit["score"]) for hit in found if hit["id"] != f"doc-{number}"]
        assert [(hit["id"], pytest.approx(hit["score"], abs=1e-5)) for hit in result["hits"]] == expected
        assert [hit["rank"] for hit in result["hits"]] == list(range(1, COUNT))
    assert_refused(client.post("/v1/search", like=["doc-3", "none"]), 422, "invalid_value", "like")


def test_a_document_is_given_by_its_id(client: Client) -> None:
    answer = client.get("/v1/documents/doc-7").json()
    (hit,) = hits(client.post("/v1/search", query=texts_for(COUNT)[7], k=1))
    assert answer == {
        "object": "document", "index_version": "v1", **{name: hit[name] for name in ("id", "title", "text", "payload")}
    }  # fmt: skip
    assert_refused(client.get("/v1/documents/doc/none"), 404, "document_not_found", "id")


def test_the_model_is_given_by_its_name(client: Client) -> None:
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.get(f"/v1/models/{MODEL}").json() == client.get("/v1/models").json()["data"][0]
    assert_refused(client.get("/v1/models/another"), 404, "model_not_found", "model")


@pytest.mark.parametrize("wrong", [1, None, "", ["a"], "\udfff"])
def test_the_query_that_is_wrong_is_named(client: Client, wrong: Any) -> None:
    answer = client.send("/v1/search", json.dumps({"query": ["right", wrong]}))
    assert_refused(answer, 422, "invalid_value", "query.1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "best"), ("mode", 1), ("include", "text"), ("include", ["text"] * 5),
        ("instruction", 5), ("instruction", "x" * 2_001), ("instruction", "\ud800"),
        ("query", ["x"] * (MAX_QUERIES + 1)),
    ],
)  # fmt: skip
def test_other_fields_of_a_search(client: Client, field: str, value: Any) -> None:
    body = json.dumps({"query": "x", field: value})
    assert_refused(client.send("/v1/search", body), 422, "invalid_value", field)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "input"), (5, "input"), (True, "input"), ({}, "input"), ("", "input"), ([], "input"), ([[]], "input.0"),
        ([""], "input.0"), (["a", 1], "input.1"), ([1, "a"], "input.1"), ([1, 1.5], "input.1"), ([1, True], "input.1"),
        ([-1], "input.0"), ([2**31], "input.0"), ([[1], [-1]], "input.1.0"), ([[1], "a"], "input.1"),
        ([None], "input.0"),
        ([True], "input.0"), ("\ud800", "input"), (["a"] * (MAX_TEXTS + 1), "input"),
        ([[1]] * (MAX_TEXTS + 1), "input"),
    ],
)  # fmt: skip
def test_input_of_embeddings(client: Client, value: Any, param: str) -> None:
    body = json.dumps({"input": value, "model": MODEL})
    assert_refused(client.send("/v1/embeddings", body), 422, "invalid_value", param)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimensions", 0), ("dimensions", 65), ("dimensions", 1.5), ("dimensions", True), ("dimensions", "8"),
        ("encoding_format", "hex"), ("user", 5), ("model", 5), ("model", "\ud800"),
        ("instruction", "\ud800"),
    ],
)  # fmt: skip
def test_other_fields_of_embeddings(client: Client, field: str, value: Any) -> None:
    body = json.dumps({"input": "x", "model": MODEL, field: value})
    assert_refused(client.send("/v1/embeddings", body), 422, "invalid_value", field)


def test_instruction_that_leaves_no_room_is_refused(client: Client) -> None:
    answer = client.post("/v1/search", query="x", mode="dense", instruction="a " * 600)
    assert_refused(answer, 422, "invalid_value", "instruction")


def test_instruction_with_token_ids_is_refused(client: Client) -> None:
    answer = client.post("/v1/embeddings", input=[1, 2], model=MODEL, instruction="find")
    assert_refused(answer, 422, "invalid_value", "instruction")


@pytest.mark.parametrize("model", ["gpt-4", "", "\x00"])
def test_another_model_is_not_found(client: Client, model: str) -> None:
    body = json.dumps({"input": "x", "model": model})
    assert_refused(client.send("/v1/embeddings", body), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/v1/embeddings", {"input": "x"}, "missing_field", "model"),
        ("/v1/search", {"query": "x", "limit": 3}, "unknown_field", "limit"),
        ("/v1/embeddings", {"input": "x", "model": MODEL, "extra": 3}, "unknown_field", "extra"),
    ],
)
def test_missing_and_unknown_fields(client: Client, path: str, body: Any, code: str, param: str) -> None:
    assert_refused(client.ask("POST", path, json=body), 422, code, param)


@pytest.mark.parametrize("name", ["x" * 100_000, "<script>", "", "a\nb", "body", "<text>"])
def test_unknown_field_of_any_name(client: Client, name: str) -> None:
    answer = client.send("/v1/search", json.dumps({"query": "x", name: 1}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_field")
    assert len(answer.content) < 1_000


def test_unknown_field_whose_name_is_no_text(client: Client) -> None:
    assert client.send("/v1/search", json.dumps({"query": "x", "\ud800": 1})).status_code == 422


NOT_JSON = {
    "half": b'{"query": "x"',
    "bad UTF-8": b'{"query": "\xff\xfe"}',
    "UTF-16": '{"query": "x"}'.encode("utf-16"),
    "NaN": b'{"query": "x", "k": NaN}',
    "Infinity": b'{"query": "x", "k": -Infinity}',
    "key twice": b'{"query": "x", "query": "y"}',
    "comment": b'{"query": "x"} // y',
    "deep list": b'{"query": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge number": b'{"query": "x", "k": ' + b"9" * 10_000 + b"}",
    "NUL": b"\x00",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON.keys())
@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings"])
def test_body_that_is_not_json(client: Client, path: str, content: bytes) -> None:
    assert_refused(client.send(path, content), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"null", b"5", b'"query"', b"[]", b'[{"query": "x"}]', b"true"])
def test_body_that_is_no_object(client: Client, body: bytes) -> None:
    answer = client.send("/v1/search", body)
    assert_refused(answer, 422, "invalid_value")
    assert answer.json()["error"]["message"] == "body: should be a JSON object"


@pytest.mark.parametrize(
    ("filter_", "param", "told"),
    [
        ("a=b", "filter", "filter: should be a JSON object"),
        ({"field": "line", "eq": [1]}, "filter.eq", "filter.eq: takes one value; use in for several"),
        ({"not": {"term": {"a": 1}}}, "filter.not", 'filter.not: "term" is no filter; write {"field": COLUMN, …}'),
        (
            {"field": "line", "eq": True},
            "filter",
            "filter: line is a column of int32, and cannot be compared with true",
        ),
    ],
)
def test_what_is_wrong_with_a_filter_is_told(client: Client, filter_: Any, param: str, told: str) -> None:
    answer = client.post("/v1/search", query="x", filter=filter_)
    assert_refused(answer, 422, "invalid_value", param)
    assert answer.json()["error"]["message"].startswith(told)


@pytest.mark.parametrize("name", ["id", "title", "line"])
def test_documents_with_and_without_a_value_are_found(client: Client, name: str) -> None:
    def found(**options: Any) -> set[str]:
        return {hit["id"] for hit in hits(client.post("/v1/search", query="x", k=COUNT, mode="dense", **options))}

    every = hits(client.post("/v1/search", query="x", k=COUNT, mode="dense"))
    without = {hit["id"] for hit in every if name == "title" and hit["title"] is None}
    assert found(filter={"field": name, "exists": False}) == without
    assert found(filter={"field": name, "exists": True}) == {hit["id"] for hit in every} - without


def test_null_is_a_field_that_was_left_out(client: Client) -> None:
    search = {"query": TEXT, "k": None, "include": None, "allow_partial": None, "filter": None, "mode": None}
    assert (
        client.post("/v1/search", **search).json()["results"] == client.post("/v1/search", query=TEXT).json()["results"]
    )
    assert client.post("/v1/embeddings", input=TEXT, model=MODEL, encoding_format=None).status_code == 200
    assert Document.model_validate({"id": "a", "text": "b", "payload": None}).payload == {}
    assert_refused(client.post("/v1/embeddings", input=TEXT, model=None), 422, "invalid_value", "model")


@pytest.mark.parametrize(
    ("path", "param"),
    [("/v1/map?limit=0", "limit"), ("/v1/models/" + "x" * 300, "id"), ("/v1/documents/" + "x" * 600, "id")],
)
def test_a_field_of_the_address_is_named_alone(client: Client, path: str, param: str) -> None:
    answer = client.get(path)
    assert_refused(answer, 422, "invalid_value", param)
    assert answer.json()["error"]["message"].startswith(f"{param}: ")


def test_json_as_deep_as_it_is_read_is_refused_by_its_schema(client: Client) -> None:
    body = b'{"query": ' + b"[" * 200 + b"]" * 200 + b"}"
    assert client.send("/v1/search", body).status_code == 422


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_body_must_be_called_json(client: Client, kind: str) -> None:
    answer = client.send("/v1/search", b'{"query": "x"}', **{"content-type": kind})
    assert_refused(answer, 415, "unsupported_media_type")


def test_compressed_body_is_not_read(client: Client) -> None:
    answer = client.send("/v1/search", b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert_refused(answer, 415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/search", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v2/search", 404, "not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/page.py", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_no_such_route(client: Client, method: str, path: str, status: int, code: str) -> None:
    assert_refused(client.ask(method, path), status, code)


def test_body_over_the_limit(narrow: Client) -> None:
    assert_refused(narrow.post("/v1/search", query="x" * 2_000), 413, "body_too_large")


def test_body_without_length_is_given_up_at_the_limit(narrow: Client) -> None:
    sent = []

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"query": "'
        for number in range(1_000):
            sent.append(number)
            yield b"x" * 100

    assert_refused(narrow.send("/v1/search", endless()), 413, "body_too_large")
    assert len(sent) < 20


def test_a_body_without_end_is_not_kept(client: Client) -> None:
    """As much as a service's memory, sent over a real connection to who refuses it and reads no more."""
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    process = psutil.Process()
    with listening(client.app) as address, socket.create_connection(("127.0.0.1", int(address.split(":")[-1]))) as raw:
        before, most = process.memory_info().rss, 0
        raw.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.settimeout(5)
        with suppress(OSError):  # it is closed, or no longer read
            for _ in range(500):
                raw.sendall(chunk)
                most = max(most, process.memory_info().rss)
    assert most - before < 64 << 20


def test_a_body_that_does_not_arrive_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayvec.serving.strict.BODY_SECONDS", 0.2)
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    )
    with listening(client.app) as address, socket.create_connection(("127.0.0.1", int(address.split(":")[-1]))) as half:
        half.settimeout(30)
        half.sendall(head + b'{"query": ')
        answer = b"".join(iter(lambda: half.recv(4096), b"")).decode()  # until it is closed
    assert answer.startswith("HTTP/1.1 408 ")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "body_timeout"


def test_too_many_tokens_in_one_request(narrow: Client) -> None:
    assert_refused(
        narrow.post("/v1/search", query=[f"a b c d e f {i}" for i in range(3)]), 422, "too_many_tokens", "input"
    )


# Who may ask


def test_other_host_name_is_refused_on_loopback(client: Client) -> None:
    answer = client.get("/ready", headers={"host": "rebound.example:8000"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_keys_guard_everything_but_page_and_health(index: Path, tmp_path: Path) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys.txt").write_text(line)
    client = Client(index, keys=Keys.load(tmp_path / "keys.txt"))
    statuses = [client.get(path).status_code for path in ("/", "/page.js", "/health", "/ready", "/v1/models")]
    wrong, right = (
        client.get("/v1/models", headers={"authorization": f"Bearer {value}"}) for value in ("rv-wrong", key)
    )
    client.close()
    assert statuses == [200, 200, 200, 200, 401]
    assert (wrong.status_code, wrong.json()["error"]["type"], right.status_code) == (401, "authentication_error", 200)


def over(service: Client, **transport: Any) -> httpx.AsyncClient:
    """The same application, asked from elsewhere or below a prefix."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(service.app, **transport), base_url="http://localhost:8000")


@pytest.mark.parametrize(
    ("peer", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("192.0.2.7", 403), ("2001:db8::7", 403)],
)
def test_without_keys_another_machine_is_refused_by_whatever_name_it_asks(
    client: Client, peer: str, status: int
) -> None:
    """A Serve that ran before the service came may listen on every interface."""
    http = over(client, client=(peer, 4711))
    assert client.runner.run(http.post("/v1/search", json={"query": TEXT})).status_code == status


def test_below_a_prefix_all_is_as_at_the_root(index: Path) -> None:
    (reader, line), (_, other) = new_key("alice"), new_key("bob", ("write",))
    service = Client(index, keys=Keys([key for key in map(parse_line, (line, other)) if key]), writable=True)
    http, given = over(service, root_path="/rag"), {"authorization": f"Bearer {reader}"}

    def status(method: str, path: str, **options: Any) -> int:
        return service.runner.run(http.request(method, path, headers=given, **options)).status_code

    documents = [{"id": "new", "text": "a text"}]
    assert status("POST", "/rag/v1/documents", json={"documents": documents}) == 403, "the key may only read"
    assert status("DELETE", "/rag/v1/documents/doc-1") == 403
    assert status("POST", "/rag/v1/search", json={"query": TEXT}) == 200
    assert [service.runner.run(http.get(path)).status_code for path in ("/rag/ready", "/rag/", "/rag/page.js")] == [
        200, 200, 200,
    ]  # fmt: skip
    numbers = service.runner.run(http.get("/rag/metrics", headers=given)).text
    assert 'route="/v1/search",status="200"' in numbers and 'route="other"' not in numbers
    described = service.runner.run(http.get("/rag/openapi.json", headers=given)).json()
    assert described["servers"] == [{"url": "/rag"}] and "/v1/search" in described["paths"]
    service.close()


# Long answers


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_a_long_answer_of_vectors_comes_in_pieces_and_is_the_same(
    client: Client, monkeypatch: pytest.MonkeyPatch, encoding_format: str
) -> None:
    body = {"model": MODEL, "input": [f"text {number}" for number in range(40)], "encoding_format": encoding_format}
    whole = client.post("/v1/embeddings", **body)
    monkeypatch.setattr(embedded, "AT_ONCE", 64 * 7)
    pieces = client.post("/v1/embeddings", **body)
    assert "content-length" in whole.headers and "content-length" not in pieces.headers
    assert pieces.headers["content-type"] == whole.headers["content-type"] and pieces.text == whole.text


def test_a_long_answer_lets_others_in_between(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "AT_ONCE", 64)
    request = EmbeddingRequest(input=["a text"] * 20, model=MODEL)

    async def turns() -> int:
        answer, count, written = await client.gateway.embed(request), 0, asyncio.Event()

        async def write() -> None:
            async for _ in answer.pieces():
                pass
            written.set()

        writing = asyncio.create_task(write())
        while not written.is_set():
            count += 1
            await asyncio.sleep(0)
        await writing
        return count

    assert client.runner.run(turns()) >= 20
