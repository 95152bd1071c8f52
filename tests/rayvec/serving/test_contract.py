"""The OpenAPI description, kept to: whatever is sent, no answer is a 5xx, and each is one that it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS

from tests.services import Client, listening

KEPT = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
NAMES = st.sampled_from(["query", "k", "mode", "input", "model", "include", "min_score", "dimensions", "x"])


def extended(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values) | st.dictionaries(NAMES, values)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def address(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Its documents change here, and must not for the other modules.
    client = Client(Path(shutil.copytree(index, tmp_path_factory.mktemp("contract") / "index")), writable=True)
    with pytest.MonkeyPatch.context() as patch, listening(client.app) as address:
        patch.setattr("rayvec.serving.retriever.REACH_SECONDS", 0.05)  # versions that never come are asked for
        yield address
    client.close()


@pytest.fixture(scope="module")
def api(address: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


OPERATIONS = [
    *(
        ("POST", "/v1/search", 60),
        ("POST", "/v1/embeddings", 60),
        ("GET", "/v1/models", 60),
        ("GET", "/v1/indexes", 20),
        ("GET", "/v1/map", 20),
        ("GET", "/v1/models/{id}", 20),
        ("POST", "/v1/rerank", 20),
        ("POST", "/v2/rerank", 20),
        ("GET", "/v1/documents/{id}", 20),
    ),
    *(("GET", "/health", 60), ("GET", "/ready", 60), ("GET", "/metrics", 60)),
    *(("POST", "/v1/documents", 60), ("DELETE", "/v1/documents", 60), ("DELETE", "/v1/documents/{id}", 60)),
]


def test_every_operation_is_tried(api: schemathesis.BaseSchema) -> None:
    described = {(method.upper(), path) for path in api for method in api[path]}
    assert described == {(method, path) for method, path, _ in OPERATIONS}


@pytest.mark.parametrize(("method", "path", "examples"), OPERATIONS)
def test_answers_are_as_described(api: schemathesis.BaseSchema, method: str, path: str, examples: int) -> None:
    operation = api[path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        case.validate_response(case.call(), checks=CHECKS.get_by_names(KEPT))

    check()


def test_bodies_of_any_kind_are_refused_and_break_nothing(address: str) -> None:
    @given(body=st.one_of(st.binary(max_size=2_000), st.recursive(SCALARS, extended, max_leaves=20).map(as_json)))
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def check(body: bytes) -> None:
        for path in ("/v1/search", "/v1/embeddings", "/v1/documents"):
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500 and (answer.status_code == 200 or "error" in answer.json())

    with httpx.Client(base_url=address) as client:
        check()
