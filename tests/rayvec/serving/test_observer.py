"""What is seen of requests: ids, metrics, the access log; and who may ask from a browser elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayvec.errors import UserError
from rayvec.serving.observer import open_log
from rayvec.serving.security import Keys, new_key, parse_line
from tests.services import Client, write_service_index

ORIGIN = "https://app.example"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.jsonl"


@pytest.fixture
def seen(index: Path, log: Path) -> Iterator[Client]:
    client = Client(index, access_log=open_log(str(log)), cors_origins=(ORIGIN,))
    yield client
    client.close()


def samples(client: Client) -> dict[tuple[str, ...], float]:
    """Values by name and labels but the replica's."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "replica")): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_tell_of_a_newer_version_that_is_refused(tmp_path: Path) -> None:
    """Without a look at /ready, which nobody may ask."""
    client = Client(write_service_index(tmp_path / "index"))
    assert samples(client)["rayvec_index_refused",] == 0
    write_service_index(tmp_path / "index", "hash:32")
    client.runner.run(client.gateway._retriever.look())  # type: ignore[attr-defined]
    found = samples(client)
    assert found["rayvec_index_refused",] == 1 and found["rayvec_index_info", "v1"] == 1
    client.close()


def test_a_usable_request_id_is_kept_and_any_other_is_replaced(seen: Client) -> None:
    kept = seen.get("/health", headers={"x-request-id": "Root=1-a/b:c"}).headers["x-request-id"]
    replaced = {seen.get("/health", headers={"x-request-id": given}).headers["x-request-id"] for given in ("", "a b")}
    assert kept == "Root=1-a/b:c" and len(replaced) == 2 and all(len(one) == 32 for one in replaced)


def test_under_serve_which_sends_a_usable_id_back_by_itself_it_is_not_sent_twice(index: Path) -> None:
    client = Client(index, under_serve=True)
    ours = [client.get("/health", headers=given).headers.get("x-request-id") for given in ({}, {"x-request-id": "a"})]
    assert ours[0] and ours[1] is None
    client.close()


def test_metrics_count_requests_stages_tokens_and_the_cache(seen: Client) -> None:
    for _ in range(2):
        assert seen.post("/v1/search", query="sort a list", k=1).status_code == 200
    assert seen.post("/v1/search", query="", k=1).status_code == 422
    found = samples(seen)
    assert found["rayvec_requests_total", "/v1/search", "200"] == 2
    assert found["rayvec_requests_total", "/v1/search", "422"] == 1
    assert found["rayvec_stage_seconds_count", "encode"] == found["rayvec_stage_seconds_count", "search"] == 2
    assert (found["rayvec_query_cache_total", "hit"], found["rayvec_query_cache_total", "miss"]) == (1, 1)
    assert found["rayvec_encoded_tokens_total",] == 4  # the beginning and three words, read once
    assert found["rayvec_index_info", "v1"] == 1
    assert found["rayvec_requests_in_flight",] == 0


def test_a_path_that_is_no_route_makes_no_label_of_its_own(seen: Client) -> None:
    seen.get("/" + "x" * 50)
    assert samples(seen)["rayvec_requests_total", "other", "404"] == 1


def test_the_access_log_has_a_line_a_request_and_no_text(seen: Client, log: Path) -> None:
    seen.post("/v1/search", query="a secret question")
    [line] = log.read_text().splitlines()
    entry = json.loads(line)
    assert (entry["method"], entry["route"], entry["status"], entry["key"]) == ("POST", "/v1/search", 200, None)
    assert "secret" not in line
    assert 0 < entry["encode_milliseconds"] + entry["search_milliseconds"] < entry["milliseconds"]


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="access_log"):
        open_log(str(tmp_path / "no" / "folder.jsonl"))


def test_a_cached_query_has_the_same_answer(seen: Client) -> None:
    first, again = (seen.post("/v1/search", query="open a socket", mode="dense").json() for _ in range(2))
    assert first["results"] == again["results"]
    assert (first["usage"]["total_tokens"], again["usage"]["total_tokens"]) == (4, 0)


def test_pages_of_other_origins_may_not_ask_unless_named(seen: Client, index: Path) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    assert seen.ask("OPTIONS", "/v1/search", headers=asked).headers["access-control-allow-origin"] == ORIGIN
    many = {**asked, "access-control-request-headers": "authorization,x-stainless-os,traceparent"}
    assert seen.ask("OPTIONS", "/v1/search", headers=many).status_code == 200, "as OpenAI's JavaScript client asks"
    stranger = seen.ask("OPTIONS", "/v1/search", headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    closed = Client(index)
    assert "access-control-allow-origin" not in closed.get("/health", headers={"origin": ORIGIN}).headers
    closed.close()


def test_a_key_may_do_what_its_scopes_say_and_the_log_names_it(index: Path, log: Path) -> None:
    made = {name: new_key(name, scopes) for name, scopes in (("r", ("read",)), ("w", ("write",)))}  # type: ignore[arg-type]
    known = [key for key in (parse_line(line) for _, line in made.values()) if key]
    client = Client(index, keys=Keys(known), access_log=open_log(str(log)))
    statuses = {
        name: client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
        for name, (key, _) in made.items()
    }
    client.close()
    assert statuses == {"r": 200, "w": 403}
    assert [json.loads(line)["key"] for line in log.read_text().splitlines()] == ["r", "w"]


def test_a_key_that_asks_too_often_waits(index: Path) -> None:
    key, line = new_key("alice", per_minute=2)
    known = parse_line(line)
    assert known is not None
    client = Client(index, keys=Keys([known]))
    answers = [client.get("/v1/models", headers={"authorization": f"Bearer {key}"}) for _ in range(3)]
    client.close()
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limited" and int(answers[2].headers["retry-after"]) >= 1
