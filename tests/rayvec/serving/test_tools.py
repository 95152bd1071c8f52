"""Tools for assistants, asked by the Model Context Protocol's own client and by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client as Assistant

from rayvec.errors import UserError
from rayvec.serving import preflight, tools
from rayvec.serving.config import Limits, ServeConfig
from rayvec.serving.security import Keys, new_key, parse_line
from tests.artifacts import texts_for
from tests.services import COUNT, Client, listening

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[Client]:
    client = Client(index, mcp=True)
    yield client
    client.close()


def call(client: Client, name: str, **arguments: Any) -> dict[str, Any]:
    """The result of a tool, asked by hand."""
    body = {**CALL, "params": {"name": name, "arguments": arguments}}
    answer = client.ask("POST", "/mcp", json=body, headers=ACCEPT)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["result"]
    return result


def test_the_protocol_s_own_client_finds_and_fetches(index: Path) -> None:
    async def ask(address: str) -> None:
        async with Assistant(f"{address}/mcp") as assistant:
            listed = {tool.name: tool for tool in (await assistant.list_tools()).tools}
            assert listed.keys() == {"search", "fetch"}
            assert "line (int32)" in (listed["search"].description or "")
            assert all(tool.annotations and tool.annotations.read_only_hint for tool in listed.values())
            text = texts_for(COUNT)[3]
            found = await assistant.call_tool("search", {"query": text, "k": 2})
            assert found.structured_content is not None
            first = found.structured_content["results"][0]
            assert (first["id"], first["text"], len(found.structured_content["results"])) == ("doc-3", text, 2)
            assert json.loads(found.content[0].text) == found.structured_content  # type: ignore[union-attr]
            fetched = await assistant.call_tool("fetch", {"id": first["id"]})
            assert fetched.structured_content is not None
            assert (fetched.structured_content["text"], fetched.structured_content["metadata"]) == (text, {"line": 3})

    client = Client(index, mcp=True)
    try:
        with listening(client.app) as address:
            asyncio.run(ask(address))
    finally:
        client.close()


def test_a_filter_holds(client: Client) -> None:
    found = call(client, "search", query="sort", k=50, filter={"field": "line", "lt": 3})
    assert sorted(hit["metadata"]["line"] for hit in found["structuredContent"]["results"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("search", {}, "query: field required"),
        ("search", {"query": "a", "k": 51}, "k: input should be less than or equal to 50"),
        ("search", {"query": "a", "color": 1}, "color: extra inputs are not permitted"),
        ("search", {"query": "a", "filter": {"field": "nothing", "eq": 1}}, "nothing"),
        ("search", {"query": "a", "filter": {"field": "line"}}, "filter"),
        ("fetch", {"id": "gone"}, "gone"),
        ("delete", {}, "there is no tool 'delete'"),
    ],
)
def test_what_is_wrong_is_told_to_the_assistant(
    client: Client, name: str, arguments: dict[str, Any], message: str
) -> None:
    result = call(client, name, **arguments)
    assert result["isError"] is True
    assert message in result["content"][0]["text"]


def test_long_texts_are_shown_in_part_and_fetched_whole(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "SHOWN_CHARACTERS", 5)
    text = texts_for(COUNT)[3]
    (hit,) = call(client, "search", query=text, k=1)["structuredContent"]["results"]
    assert hit["text"] == f"{text[:5]}…"
    assert call(client, "fetch", id=hit["id"])["structuredContent"]["text"] == text


def test_a_link_among_the_columns_stands_by_itself() -> None:
    hit = {"id": "a", "title": None, "text": None, "payload": {"url": "https://example.org/a", "n": 1}, "score": 0.5}
    shown = tools._shown(hit)
    assert (shown["url"], shown["title"], shown["metadata"]["n"]) == ("https://example.org/a", "a", 1)
    assert "url" not in tools._shown({**hit, "payload": {"url": 7}})


def test_a_fault_of_ours_is_told_without_its_text(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError("a very private question")

    monkeypatch.setattr(client.gateway, "search", fails)
    result = call(client, "search", query="a")
    assert result["isError"] is True
    assert result["content"][0]["text"] == "the service failed on this request; its log has the details"


def test_a_key_is_asked_for_as_everywhere(index: Path) -> None:
    key, line = new_key("agent")
    parsed = parse_line(line)
    assert parsed is not None
    client = Client(index, keys=Keys([parsed]), mcp=True)
    body = {**CALL, "params": {"name": "search", "arguments": {"query": "sort"}}}
    try:
        assert client.ask("POST", "/mcp", json=body, headers=ACCEPT).status_code == 401
        answer = client.ask("POST", "/mcp", json=body, headers={**ACCEPT, "authorization": f"Bearer {key}"})
        assert answer.json()["result"]["structuredContent"]["results"]
        assert 'route="/mcp"' in client.ask("GET", "/metrics", headers={"authorization": f"Bearer {key}"}).text
    finally:
        client.close()


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"\xff", 400), (b"[]", 400), (b"[" * 3_000, 400), (b'{"jsonrpc": "2.0", "method": "x"}', None)],
)
def test_rubbish_is_refused_and_nothing_breaks(client: Client, content: bytes, status: int | None) -> None:
    answer = client.send("/mcp", content, **ACCEPT)
    assert answer.status_code == status if status else answer.status_code < 500
    assert not call(client, "search", query="sort").get("isError")


def test_bodies_are_bounded_and_there_is_nothing_to_listen_to(index: Path) -> None:
    client = Client(index, Limits(body_bytes=1_000), mcp=True)
    try:
        assert client.send("/mcp", b" " * 2_000, **ACCEPT).status_code == 413
        for method in ("GET", "DELETE"):
            refused: httpx.Response = client.ask(method, "/mcp", headers=ACCEPT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
    finally:
        client.close()


def test_there_are_no_tools_unless_they_are_asked_for(index: Path) -> None:
    client = Client(index)
    try:
        assert client.send("/mcp", b"{}", **ACCEPT).status_code == 404
    finally:
        client.close()


def test_without_the_library_the_cure_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'rayvec\[mcp\]'"):
        preflight.plan(ServeConfig(index=str(index), mcp=True))
