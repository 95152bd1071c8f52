"""The index's part, as a plain object."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rayvec.errors import MismatchError, StorageError, UserError, VerificationError
from rayvec.indexing import versions
from rayvec.indexing.searcher import Index
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.problems import Problem
from rayvec.serving.retriever import Retriever
from rayvec.serving.search import Options
from tests.services import write_service_index

ENCODER = HashEncoder(64)


def documents(retriever: Retriever) -> tuple[str, int]:
    """The version that answers, and how many documents it has."""
    facts = asyncio.run(retriever.facts())
    return facts.version, facts.count


def retriever_of(folder: Path, version: str) -> Retriever:
    retriever = Retriever(str(folder), ENCODER.fingerprint)
    asyncio.run(retriever.reconfigure({"version": version}))
    return retriever


def test_index_part_refuses_an_encoder_that_did_not_make_it(index: Path) -> None:
    retriever = Retriever(str(index), HashEncoder(32).fingerprint)
    with pytest.raises(MismatchError, match="weights"):
        asyncio.run(retriever.reconfigure({"version": "v1"}))


def test_vectors_of_another_encoder_are_not_searched_with(index: Path) -> None:
    retriever = retriever_of(index, "v1")
    vectors = ENCODER.encode(["a"])

    def search(fingerprint: str | None) -> int:
        options = Options(k=1, mode="dense")
        return len(asyncio.run(retriever.search(["a"], vectors, options, fingerprint)).hits[0])

    assert (search(ENCODER.fingerprint.short), search(None)) == (1, 1)
    with pytest.raises(Problem) as refused:
        search(HashEncoder(32).fingerprint.short)
    assert (refused.value.status_code, refused.value.code) == (503, "encoder_changed")
    assert refused.value.headers == {"Retry-After": "1"}


def test_before_a_version_is_named_it_is_not_ready(index: Path) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(Retriever(str(index)).facts())
    assert (refused.value.status_code, refused.value.code) == (503, "not_ready")


def test_version_changes_while_running_and_back(tmp_path: Path) -> None:
    for count in (4, 8):
        write_service_index(tmp_path, count=count)
    retriever = retriever_of(tmp_path, "v1")
    assert documents(retriever) == ("v1", 4)
    asyncio.run(retriever.reconfigure({"version": "v2"}))
    assert documents(retriever) == ("v2", 8)
    asyncio.run(retriever.reconfigure({"version": "v1"}))
    assert documents(retriever) == ("v1", 4)


@pytest.mark.parametrize(
    ("damage", "error"), [("missing", UserError), ("bytes", VerificationError), ("encoder", MismatchError)]
)
def test_a_version_that_is_refused_leaves_the_old_one(tmp_path: Path, damage: str, error: type[Exception]) -> None:
    write_service_index(tmp_path, count=4)
    retriever = retriever_of(tmp_path, "v1")
    if damage != "missing":
        write_service_index(tmp_path, "hash:32" if damage == "encoder" else "hash:64", count=8)
    if damage == "bytes":
        shard = tmp_path / "versions" / "v2" / "shard-00000.faiss"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    with pytest.raises(error):
        asyncio.run(retriever.reconfigure({"version": "v2"}))
    assert documents(retriever) == ("v1", 4)


async def after(retriever: Retriever, change: Any) -> tuple[str, str | None]:
    """The version that answers after a change on disk, and what is told of one that is refused."""
    await retriever.reconfigure({"version": None})
    change()
    await retriever.look()
    facts = await retriever.facts()
    return facts.version, facts.refused


def damage(folder: Path) -> None:
    shard = folder / "versions" / "v2" / "shard-00000.faiss"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def test_where_none_is_pinned_the_live_version_is_followed(tmp_path: Path) -> None:
    write_service_index(tmp_path, count=4)
    retriever = Retriever(str(tmp_path), ENCODER.fingerprint)
    assert asyncio.run(after(retriever, lambda: write_service_index(tmp_path, count=8))) == ("v2", None)
    assert asyncio.run(after(retriever, lambda: versions.rollback(tmp_path))) == ("v1", None)


def test_a_new_version_that_is_refused_is_told_of_and_the_old_one_goes_on(tmp_path: Path) -> None:
    write_service_index(tmp_path, count=4)
    retriever = Retriever(str(tmp_path), ENCODER.fingerprint)

    def change() -> None:
        write_service_index(tmp_path, count=8)
        damage(tmp_path)

    version, refused = asyncio.run(after(retriever, change))
    assert version == "v1" and refused is not None and refused.startswith("v2: ") and "shard-00000.faiss" in refused
    # A good one that follows is taken, and nothing is told any more.
    assert asyncio.run(after(retriever, lambda: write_service_index(tmp_path, count=6))) == ("v3", None)


def test_an_index_of_another_encoder_is_not_followed(tmp_path: Path) -> None:
    write_service_index(tmp_path, count=4)
    retriever = Retriever(str(tmp_path), ENCODER.fingerprint)
    version, refused = asyncio.run(after(retriever, lambda: write_service_index(tmp_path, "hash:32", count=4)))
    assert version == "v1" and refused is not None and "weights" in refused


class Failing(Retriever):
    """One whose loads fail, as long as there are errors to raise."""

    errors: list[Exception]

    def _open(self, version: str | None, before: Index | None) -> Index:
        if before is not None and self.errors:
            raise self.errors.pop(0)
        return super()._open(version, before)


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale file handle"), MemoryError(), StorageError("no room")])
def test_a_failure_that_may_pass_is_tried_again(tmp_path: Path, error: Exception) -> None:
    write_service_index(tmp_path, count=4)

    async def run() -> None:
        retriever = Failing(str(tmp_path), ENCODER.fingerprint, poll_seconds=0.01)
        retriever.errors = [error, error]
        await retriever.reconfigure({"version": None})
        write_service_index(tmp_path, count=8)
        told = set()
        async with asyncio.timeout(30):
            while (facts := await retriever.facts()).version == "v1":
                told.add(facts.refused)
                await asyncio.sleep(0.001)
        assert (facts.version, facts.refused) == ("v2", None)
        assert told - {None} == {f"v2, which is tried again: {str(error) or 'MemoryError'}"}

    asyncio.run(run())


def test_a_pointer_that_cannot_be_read_for_a_while_does_not_end_the_following(tmp_path: Path) -> None:
    write_service_index(tmp_path, count=4)

    async def run() -> None:
        retriever = Retriever(str(tmp_path), ENCODER.fingerprint, poll_seconds=0.01)
        await retriever.reconfigure({"version": None})
        write_service_index(tmp_path, count=8)
        content = (tmp_path / versions.CURRENT).read_bytes()
        (tmp_path / versions.CURRENT).unlink()
        (tmp_path / versions.CURRENT).mkdir()  # reading it is an OSError
        async with asyncio.timeout(30):
            while not str((await retriever.facts()).refused).startswith("CURRENT, which is tried again: "):
                await asyncio.sleep(0.01)
            (tmp_path / versions.CURRENT).rmdir()
            (tmp_path / versions.CURRENT).write_bytes(content)
            while (await retriever.facts()).version == "v1":
                await asyncio.sleep(0.01)
        assert (await retriever.facts()).refused is None

    asyncio.run(run())


class Stuck:
    """A reranker that never ends, until it is told to."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, query: str, texts: Sequence[str]) -> list[float]:
        self.release.wait(10)
        return [1.0] * len(texts)


def test_work_that_hangs_is_seen(index: Path) -> None:
    async def run() -> None:
        retriever = Retriever(str(index), ENCODER.fingerprint, timeout_seconds=0.01)
        retriever._reranker = stuck = Stuck()
        await retriever.check_health()
        task = asyncio.create_task(retriever.rerank("a", ["b"]))
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="search: the same work has been running"):
            await retriever.check_health()
        stuck.release.set()
        assert await task == [1.0]
        await retriever.check_health()

    asyncio.run(run())


def test_it_follows_by_itself(tmp_path: Path) -> None:
    write_service_index(tmp_path, count=4)

    async def run() -> str:
        retriever = Retriever(str(tmp_path), ENCODER.fingerprint, poll_seconds=0.01)
        await retriever.reconfigure({"version": None})
        write_service_index(tmp_path, count=8)
        async with asyncio.timeout(30):
            while (await retriever.facts()).version == "v1":
                await asyncio.sleep(0.01)
        return (await retriever.facts()).version

    assert asyncio.run(run()) == "v2"
