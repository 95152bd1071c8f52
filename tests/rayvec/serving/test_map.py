"""The map over HTTP: drawn once a version, beside searches, and hits put on it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from rayvec.indexing import maps
from rayvec.indexing.searcher import Index
from rayvec.serving import mapping
from rayvec.serving.mapping import Cartographer
from rayvec.serving.problems import Problem
from tests.services import COUNT, Client


def hits(client: Client) -> list[dict[str, Any]]:
    found = client.post("/v1/search", query="sort the list", k=COUNT, mode="dense", include=["map"]).json()
    return list(found["results"][0]["hits"])


def test_hits_have_their_place_on_the_map_that_is_given(index: Path) -> None:
    client = Client(index)
    first = hits(client)  # waits for it to be drawn, since that takes a moment only
    answer = client.get("/v1/map").json()
    assert (answer["index_version"], answer["documents"], answer["method"]) == ("v1", COUNT, "pca")
    assert 0 < answer["explained"] <= 1
    places = {id_: [x, y] for id_, x, y in zip(answer["ids"], answer["x"], answer["y"], strict=True)}
    assert len(places) == COUNT == len(answer["titles"])
    for found in (first, hits(client)):
        assert {hit["id"]: hit["map"] for hit in found} == {
            id_: pytest.approx(p, abs=2e-4) for id_, p in places.items()
        }
    few = client.get("/v1/map?limit=5").json()
    assert (few["ids"], few["x"]) == (answer["ids"][:5], answer["x"][:5])
    client.close()


def test_a_search_does_not_stay_for_a_map_that_takes_long(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, may_go_on = maps.draw, threading.Event()

    def slowly(index: Index) -> maps.Map:
        may_go_on.wait(60)
        return draw(index)

    monkeypatch.setattr(maps, "draw", slowly)
    monkeypatch.setattr(mapping, "SOON_SECONDS", 0.05)
    client = Client(index)
    assert [hit["map"] for hit in hits(client)] == [None] * COUNT
    may_go_on.set()
    assert len(client.get("/v1/map").json()["ids"]) == COUNT  # what was begun by the search
    assert all(hit["map"] for hit in hits(client))
    client.close()


@pytest.mark.parametrize("limit", ["0", "5001", "x"])
def test_a_limit_that_cannot_be_is_refused(client: Client, limit: str) -> None:
    answer = client.get(f"/v1/map?limit={limit}")
    assert answer.status_code == 422 and "limit" in answer.json()["error"]["message"]


def test_it_is_drawn_once_however_many_ask(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = maps.draw
    monkeypatch.setattr(maps, "draw", lambda index: drawn.append(index.version) or draw(index))

    async def ask() -> None:
        opened, cartographer = Index.open(index, threads=1), Cartographer()
        assert cartographer.peek(opened) is None
        found = await asyncio.gather(*(cartographer.drawn(opened) for _ in range(5)))
        assert len({id(one) for one in found}) == 1 and cartographer.peek(opened) is found[0]

    asyncio.run(ask())
    assert drawn == ["v1"]


def test_a_map_that_cannot_be_drawn_stops_no_search_and_is_tried_again_when_asked_for(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(index: Index) -> None:
        tried.append(index.version)
        raise MemoryError

    async def ask() -> None:
        opened, cartographer = Index.open(index, threads=1), Cartographer()
        with monkeypatch.context() as patch:
            patch.setattr(maps, "draw", fails)
            for _ in range(2):
                with pytest.raises(Problem, match="could not be drawn"):
                    await cartographer.drawn(opened)
        assert (await cartographer.drawn(opened)).version == "v1"

    asyncio.run(ask())
    assert len(tried) == 2
