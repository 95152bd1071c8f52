"""The index's part, as a plain object."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.indexing import versions
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.problems import Problem
from rayvec.serving.retriever import Retriever
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
