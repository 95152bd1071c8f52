"""Vectors spread over parts: the same hits as from one index, and a part that is missing is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.indexing import versions
from rayvec.indexing.filters import Condition
from rayvec.indexing.part import Part
from rayvec.indexing.ranking import Ranking
from rayvec.indexing.searcher import Index
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.config import Limits, ServeConfig
from rayvec.serving.parts import VectorPart
from rayvec.serving.preflight import plan
from rayvec.serving.problems import Problem
from rayvec.serving.retriever import Retriever
from rayvec.serving.search import Options, search_index
from rayvec.serving.services import Found
from tests.artifacts import texts_for, write_index

ENCODER = HashEncoder(64)
COUNT, PARTS = 90, 3
TEXTS = texts_for(COUNT)
QUERIES = TEXTS[5:9]


class Tripping(VectorPart):
    """A part that answers until it is told not to."""

    trip: Callable[[], Any] | None = None

    async def nearest(self, version: str, queries_QR: np.ndarray, k: int, filter_: str | None) -> Ranking:
        if self.trip is not None:
            await self.trip()
        return await super().nearest(version, queries_QR, k, filter_)


async def hang() -> None:
    await asyncio.sleep(60)


async def fail() -> None:
    raise OSError("the disk of this part is gone")


def write(folder: Path, count: int = COUNT) -> Path:
    texts = texts_for(count)
    vectors = ENCODER.encode(texts)
    write_index(folder, vectors, texts, pieces=5, made_by=ENCODER.fingerprint, encoder="hash:64")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parts") / "index")


async def scattered(index: Path, version: str | None = "v1", seconds: float = 5.0) -> tuple[Retriever, list[Tripping]]:
    parts = [Tripping(str(index), Part(number, PARTS), ENCODER.fingerprint, 0.05) for number in range(PARTS)]
    for part in parts:
        await part.reconfigure({"version": version})
    retriever = Retriever(str(index), ENCODER.fingerprint, None, 0.05, parts, seconds)
    await retriever.reconfigure({"version": version})
    return retriever, parts


async def search(retriever: Retriever, **options: Any) -> Found:
    return await retriever.search(QUERIES, ENCODER.encode(QUERIES), Options(**{"mode": "dense", **options}))


@pytest.mark.parametrize(
    "options",
    [
        {"k": 7},
        {"k": COUNT + 5},
        {"k": 9, "mode": "hybrid"},
        {"k": 4, "mode": "lexical"},
        {"k": 12, "filter": Condition(field="line", gte=20)},
        {"k": 12, "filter": Condition(field="title", exists=False)},
        {"k": 3, "include": ("vector",)},
        {"k": 5, "mode": "hybrid", "fusion": "rrf", "unique_by": "title"},
    ],
)
def test_parts_answer_as_one_index_does(index: Path, options: dict[str, Any]) -> None:
    async def run() -> Found:
        retriever, _ = await scattered(index)
        return await search(retriever, **options)

    found = asyncio.run(run())
    whole = Index.open(index, "v1")
    wanted = search_index(whole, QUERIES, ENCODER.encode(QUERIES), Options(**{"mode": "dense", **options}))
    assert [[hit.id for hit in hits] for hits in found.hits] == [[hit.id for hit in hits] for hits in wanted]
    assert [hit.vector for hits in found.hits for hit in hits] == [hit.vector for hits in wanted for hit in hits]
    assert (found.coverage, found.missing, found.version) == (1.0, [], "v1")


@pytest.mark.parametrize("trip", [hang, fail])
def test_a_part_that_does_not_answer_is_told_and_the_others_are_searched(index: Path, trip: Callable[[], Any]) -> None:
    async def run() -> tuple[Found, Found, Found, list[int]]:
        retriever, parts = await scattered(index, seconds=0.3)
        parts[1].trip = trip
        partial = await search(retriever, k=COUNT)
        resting = (await retriever.facts()).missing
        with pytest.raises(Problem) as refused:
            await search(retriever, allow_partial=False)
        assert (refused.value.status_code, refused.value.code) == (503, "shards_missing")
        words = await search(retriever, mode="lexical")
        parts[1].trip = None
        await asyncio.sleep(1.1)
        return partial, words, await search(retriever, k=COUNT), resting

    partial, words, again, resting = asyncio.run(run())
    rows = Part(1, PARTS).rows(Index.open(index, "v1").manifest)
    assert 0 < rows < COUNT and [len(hits) for hits in partial.hits] == [COUNT - rows] * len(QUERIES)
    assert partial.coverage == pytest.approx(1 - rows / COUNT) and partial.missing == resting == [1]
    assert words.coverage == 1.0 and words.missing == []
    assert again.coverage == 1.0 and [len(hits) for hits in again.hits] == [COUNT] * len(QUERIES)


def test_when_no_part_answers_the_answer_is_503(index: Path) -> None:
    async def run() -> None:
        retriever, parts = await scattered(index)
        for part in parts:
            part.trip = fail
        with pytest.raises(Problem) as refused:
            await search(retriever)
        assert (refused.value.status_code, refused.value.code) == (503, "shards_missing")

    asyncio.run(run())


def test_a_new_version_is_taken_only_when_every_part_has_it(tmp_path: Path) -> None:
    write(tmp_path)

    async def run() -> None:
        retriever, parts = await scattered(tmp_path, version=None, seconds=0.3)
        parts[2].trip = hang
        write(tmp_path, COUNT - 10)
        await retriever.look()
        facts = await retriever.facts()
        assert facts.version == "v1" and "parts 2 of v2 are not loaded" in str(facts.refused)
        parts[2].trip = None
        await asyncio.sleep(1.1)
        await retriever.look()
        facts = await retriever.facts()
        assert (facts.version, facts.refused, facts.count) == ("v2", None, COUNT - 10)
        found = await search(retriever, k=3)
        assert found.version == "v2" and found.coverage == 1.0

    asyncio.run(run())


def test_a_part_follows_through_a_failure_at_its_first_look(tmp_path: Path) -> None:
    write(tmp_path)

    async def run() -> None:
        part = VectorPart(str(tmp_path), Part(0, PARTS), ENCODER.fingerprint, 0.01)
        await part.reconfigure({"version": None})
        current = tmp_path / versions.CURRENT
        content = current.read_bytes()
        current.unlink()
        current.mkdir()  # reading it is an OSError
        await asyncio.sleep(0.1)
        current.rmdir()
        current.write_bytes(content)
        write(tmp_path, COUNT - 10)
        async with asyncio.timeout(30):
            while (last := part._versions.last) is None or last.version == "v1":
                await asyncio.sleep(0.01)
        assert last.version == "v2"

    asyncio.run(run())


def test_a_part_whose_work_hangs_is_seen(index: Path) -> None:
    async def run() -> None:
        part = VectorPart(str(index), Part(0, PARTS), ENCODER.fingerprint, timeout_seconds=0.01)
        await part.reconfigure({"version": "v1"})
        await part.check_health()
        opened = await part._versions.get("v1")
        release = threading.Event()
        opened.vectors = lambda rows: release.wait(10)  # type: ignore[method-assign]
        task = asyncio.create_task(part.vectors("v1", np.array([0])))
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="part: the same work has been running"):
            await part.check_health()
        release.set()
        await task
        await part.check_health()

    asyncio.run(run())


def test_a_part_opens_its_own_files_alone(index: Path, tmp_path: Path) -> None:
    folder = write(tmp_path)
    shard = folder / "versions" / "v1" / "shard-00001.faiss"
    shard.write_bytes(shard.read_bytes()[:-1])
    for number, parts in ((0, 3), (2, 3), (None, 3)):
        Index.open(folder, "v1", part=Part(number, parts))
    with pytest.raises(Exception, match="shard-00001"):
        Index.open(folder, "v1", part=Part(1, 3))
    assert Limits().part_seconds > 0


def test_more_parts_than_files_are_refused_before_ray_starts(index: Path) -> None:
    config = ServeConfig.parse({"index": str(index), "replicas": {"parts": 6}})
    with pytest.raises(UserError, match="lie in 5 files; build it with --set shards=6"):
        plan(config)
