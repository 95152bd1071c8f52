"""Routes with a body: as strict past the framework as through it, no answer for who has gone, all behind the door."""

from __future__ import annotations

from typing import Any

import pytest

from rayvec.serving.door import WORK
from tests.services import Client

NAN = b'{"query": "a", "min_score": NaN}'


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search%0A"])
def test_a_path_that_only_the_framework_takes_is_read_as_strictly(client: Client, path: str) -> None:
    answer = client.send(path, NAN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_who_goes_away_before_the_body_is_there_is_not_answered(client: Client) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/search", "raw_path": b"/v1/search", "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "headers": headers, "client": None, "server": None,
    }  # fmt: skip
    client.runner.run(client.app(scope, receive, send))
    assert sent == []
    numbers = client.get("/metrics").text
    assert any('route="/v1/search",status="499"' in line for line in numbers.splitlines())


def test_the_door_knows_every_route_that_asks_for_work(client: Client) -> None:
    operations = client.get("/openapi.json").json()["paths"]
    asking = [path for path, methods in operations.items() if {"post", "put", "patch", "delete"} & set(methods)]
    assert len(asking) >= 4
    assert [path for path in asking if not path.startswith(WORK)] == []
