"""Embedding from a bucket to a bucket: a real S3 server, a driver that is killed, a second one, and who reads it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines._ray import worker_environment
from pipelines.compact import CompactConfig, compact
from pipelines.embed import EmbedConfig, embed, verify
from pipelines.index import IndexConfig, index
from pipelines.mine import MineConfig, mine
from pipelines.update import UpdateConfig, update
from pipelines.versions import list_index, prune, roll_back, verify_index
from rayvec import storage, uris
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import ConcurrentWriterError, MismatchError, UserError, VerificationError
from rayvec.lease import sole_writer
from rayvec.serving.config import ServeConfig
from rayvec.serving.preflight import plan
from rayvec.serving.retriever import Retriever
from rayvec.serving.search import Options
from tests.buckets import s3_server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("bucket", "ray_cluster"),  # in this order: workers inherit where the server is
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),
]

RECORDS = 60
LEASE_S = 3.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as uri:
        yield uri


@pytest.fixture(scope="module")
def corpus(bucket: str) -> list[bytes]:
    """Three files; in the second a broken line, in the third the id of an earlier record."""
    lines = [json.dumps({"id": f"d{i}", "text": f"record {i} of many " * (i % 5 + 1)}).encode() for i in range(RECORDS)]
    files = [lines[:20], [*lines[20:40], b"{broken"], [*lines[40:], b'{"id": "d3", "text": "again"}']]
    contents = [b"\n".join(file) + b"\n" for file in files]
    for number, content in enumerate(contents):
        storage.write_bytes(f"{bucket}/corpus/part-{number}.jsonl", content)
    return contents


def config(source: str, output: str, **values: Any) -> EmbedConfig:
    settings: dict[str, Any] = {"source": {"path": source}, "output": output, "lease_s": LEASE_S}
    return EmbedConfig.parse({"encoder": "hash", "unit_rows": 8, "max_quarantine": 0.05, **settings, **values})


def rows(output: str) -> list[dict[str, Any]]:
    return [row for table in EmbeddingsDataset.open(output).iter_tables() for row in table.to_pylist()]


@pytest.fixture(scope="module")
def done(ray_cluster: None, bucket: str, corpus: list[bytes]) -> tuple[EmbedConfig, dict[str, Any]]:
    """A run from and to the bucket, killed before it publishes, and run again; and the report of that."""
    run = config(f"{bucket}/corpus", f"{bucket}/out")
    values = [f"--set={key}={value}" for key, value in {"lease_s": LEASE_S, "unit_rows": 8}.items()]
    killed = subprocess.run(
        [sys.executable, "-m", "jobs.embed", "--recipe", "hash.embed", f"--set=source.path={run.source.path}",
         f"--set=output={run.output}", "--set=max_quarantine=0.05", *values],
        env={**os.environ, **worker_environment(), "RAYVEC_FAULT": "before_manifest"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert killed.returncode == 137, killed.stderr
    assert storage.list_names(f"{run.output}/manifests") == []
    # Of what the killed run did, one unit is lost: it is done again.
    storage.delete(f"{run.output}/units/{storage.list_names(f'{run.output}/units')[3]}")
    return run, embed(run)


Done = tuple[EmbedConfig, dict[str, Any]]


def test_the_second_run_goes_on_where_the_first_was_killed(done: Done) -> None:
    report = done[1]
    assert (report["units_resumed"], report["units"]) == (report["units"] - 1, 9)
    assert (report["embedded"], report["quarantined"], report["duplicates"]) == (RECORDS, {"invalid_json": 1}, 1)


def test_it_ends_as_on_a_local_disk(done: Done, corpus: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number, content in enumerate(corpus):
        (tmp_path / "corpus" / f"part-{number}.jsonl").write_bytes(content)
    embed(config(str(tmp_path / "corpus"), str(tmp_path / "out")))
    assert rows(done[0].output) == rows(str(tmp_path / "out"))


def test_files_and_patterns_in_a_bucket_are_sources(done: Done, bucket: str, tmp_path: Path) -> None:
    assert embed(config(f"{bucket}/corpus/part-0.jsonl", str(tmp_path / "file")))["embedded"] == 20
    assert embed(config(f"{bucket}/corpus/part-[02].jsonl", f"{bucket}/some"))["files"] == 2


def test_it_verifies_and_a_damaged_part_is_found(done: Done) -> None:
    output = done[0].output
    assert verify(output)["rows"] == RECORDS
    uri = EmbeddingsDataset.open(output).part_uris[2]
    whole = storage.read_bytes(uri)
    storage.write_bytes(uri, whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    try:
        with pytest.raises(VerificationError, match=uris.name_of(uri)):
            verify(output)
    finally:
        storage.write_bytes(uri, whole)


def test_an_index_is_built_from_the_bucket(done: Done, tmp_path: Path) -> None:
    report = index(IndexConfig.parse({"embeddings": done[0].output, "output": str(tmp_path / "index")}))
    assert report["documents"] == RECORDS


def test_an_index_lives_in_the_bucket(done: Done, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built, served elsewhere, changed by jobs while it is served, compacted, gone back in."""
    place = f"{bucket}/index"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "jobs"))
    build = IndexConfig.parse({"embeddings": done[0].output, "output": place, "dimensions": 16, "recall_target": 0.5})
    report = index(build)
    assert (report["version"], report["documents"], report["output"]) == ("v1", RECORDS, place)
    assert f"--set index={place}" in report["next"]
    files = {".lease", "CURRENT", "config.yaml", "dimensions.png", "files", "report.json", "versions"}
    assert set(storage.list_names(place)) == files
    assert index(build)["reused"]

    def on_the_service(call: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "service"))
            return call()

    service = ServeConfig(index=place, encoder="hash")
    assert (plan(service).version, plan(service).name) == ("v1", "index")
    with pytest.raises(UserError, match="is a bucket, which is changed by jobs alone"):
        plan(service.replace(writable=True))
    retriever = Retriever(place, plan(service).fingerprint)
    on_the_service(lambda: asyncio.run(retriever.reconfigure({"version": None})))
    found = asyncio.run(retriever.search(["record 7"], None, Options(k=1, mode="lexical")))
    assert (found.version, found.hits[0][0].id) == ("v1", "d7")

    assert update(UpdateConfig(index=place, delete=("d7", "d8")))["deleted"] == 2
    assert update(UpdateConfig(index=place, delete=("d7", "d8")))["unchanged"]
    on_the_service(lambda: asyncio.run(retriever.look()))
    found = asyncio.run(retriever.search(["record 7"], None, Options(k=1, mode="lexical")))
    assert (found.version, found.hits[0][0].id != "d7") == ("v2", True)
    assert compact(CompactConfig(index=place))["version"] == "v3"
    assert [row["documents"] for row in list_index(place)] == [RECORDS, RECORDS - 2, RECORDS - 2]
    assert list_index(place)[1]["new_bytes"] < list_index(place)[0]["bytes"] / 4
    assert (verify_index(place)["version"], verify_index(place)["documents"]) == ("v3", RECORDS - 2)
    assert roll_back(place, "v1")["live"] == "v1"
    on_the_service(lambda: asyncio.run(retriever.look()))
    assert asyncio.run(retriever.facts()).count == RECORDS
    assert prune(place, 1)["removed"] == ["v2"]
    with pytest.raises(UserError, match="holds embeddings, not an index"):
        index(build.replace(output=done[0].output, rebuild=True))


@pytest.mark.nightly
def test_an_index_in_the_bucket_is_mined_as_one_in_a_folder(
    done: Done, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    pairs = [{"query": f"record {i} of", "positive_id": f"d{i}"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    mined = []
    for name, place in (("there", f"{bucket}/mined"), ("here", str(tmp_path / "index"))):
        index(IndexConfig.parse({"embeddings": done[0].output, "output": place}))
        output = tmp_path / f"{name}.jsonl"
        rules = {"negatives": 2, "rank_stop": 20, "actors": 2}
        report = mine(
            MineConfig.parse({"index": place, "pairs": str(tmp_path / "pairs.jsonl"), "output": str(output), **rules})
        )
        assert report["output"] == str(output)
        mined.append(output.read_bytes())
    assert mined[0] == mined[1] and mined[0].count(b"negative") >= len(pairs)


def test_a_run_beside_another_is_refused(done: Done) -> None:
    with sole_writer(done[0].output, 12), pytest.raises(ConcurrentWriterError, match=f"process {os.getpid()} on"):
        embed(done[0].replace(lease_s=12))


def test_another_encoder_or_a_changed_input_is_refused(done: Done, bucket: str, corpus: list[bytes]) -> None:
    with pytest.raises(MismatchError, match="dim"):
        embed(done[0].replace(encoder="hash:32"))
    storage.write_bytes(f"{bucket}/corpus/part-0.jsonl", corpus[0] + b"\n")
    with pytest.raises(MismatchError, match=r"part-0.jsonl has \d+ bytes now"):
        embed(done[0])
