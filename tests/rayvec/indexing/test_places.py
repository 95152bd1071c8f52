"""An index in a bucket (a real S3 server): published whole or not at all, and copied to who reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines._ray import worker_environment
from rayvec import storage, uris
from rayvec.errors import ConcurrentWriterError, StorageError, UserError, VerificationError
from rayvec.indexing import bucket, drafts, mirrors, places, versions
from rayvec.indexing.part import Part
from rayvec.indexing.searcher import Index
from rayvec.lease import sole_writer
from tests.artifacts import random_vectors, texts_for, write_embeddings, write_index
from tests.buckets import s3_server

LEASE_S = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as uri:
        yield uri


@pytest.fixture
def uri(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The place of an index, with nothing there and nothing on this machine."""
    another_machine(monkeypatch, tmp_path / "first")
    return f"{server}/{tmp_path.name}"


def another_machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def make(folder: Path, content: str, *kept: str) -> str:
    """A version in a folder, with a file of its own; `kept` are files of the live version."""
    with drafts.new_version(folder) as draft:
        (draft.folder / content).write_text(content)
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "data").write_text(content)
        if kept:
            before = versions.version_folder(folder)
            draft.take(before, versions.read_manifest(before), kept)
        draft.commit({"content": content})
    return draft.name


def publish(uri: str, content: str, *kept: str, resumes: bool = False) -> str:
    with places.working(uri, lease_s=LEASE_S, resumes=resumes) as folder:
        return make(folder, content, *kept)


def content_of(uri: str, version: str | None = None) -> str:
    folder = places.version_folder(uri, version)
    versions.verify(folder, versions.read_manifest(folder))
    return (folder / "deep" / "data").read_text()


def objects(uri: str) -> list[str]:
    return storage.list_names(uris.join(uri, "files"))


def test_what_a_job_made_live_is_live_in_the_bucket_and_read_on_another_machine(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [publish(uri, text) for text in ("one", "two")] == ["v1", "v2"]
    another_machine(monkeypatch, tmp_path / "second")
    assert places.current(uri) == "v2" and places.list_versions(uri) == ["v1", "v2"]
    assert places.read_manifest(uri)["content"] == "two"
    assert not mirrors.folder_of(uri).exists(), "a manifest is read without its files"
    assert (content_of(uri), content_of(uri, "v1")) == ("two", "one")
    assert publish(uri, "three") == "v3"
    assert content_of(uri) == "three"


def test_files_that_versions_share_are_sent_once_and_are_one_file_here(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(uri, "one")
    assert len(objects(uri)) == 1, "two files of one content"
    publish(uri, "two", "one")
    assert len(objects(uri)) == 2
    another_machine(monkeypatch, tmp_path / "second")
    old, new = places.version_folder(uri, "v1"), places.version_folder(uri, "v2")
    assert (old / "one").samefile(new / "one")


def test_what_could_not_be_sent_is_sent_by_the_next_run_or_forgotten(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(uri, "one")

    def fail(*_: object) -> bool:
        raise StorageError("the store cannot be reached")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(bucket, "publish", fail)
        publish(uri, "two")
    assert content_of(uri) == "one"
    with places.working(uri, resumes=True) as folder:
        assert versions.read_manifest(versions.version_folder(folder))["content"] == "two"
    assert (places.current(uri), content_of(uri)) == ("v2", "two")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(bucket, "publish", fail)
        publish(uri, "lost")
    with places.working(uri) as folder:
        assert versions.current(folder) == "v2"
    assert content_of(uri) == "two"
    assert publish(uri, "three") == "v4", "a number is not given twice"
    assert places.list_versions(uri) == ["v1", "v2", "v4"]


def test_a_version_of_another_machine_takes_the_place_of_one_that_was_not_sent(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), places.working(uri) as folder:
        make(folder, "mine")
        _ = 1 / 0
    with monkeypatch.context() as patch:
        another_machine(patch, tmp_path / "second")
        assert publish(uri, "theirs") == "v1"
    assert content_of(uri) == "theirs"
    assert publish(uri, "next", resumes=True) == "v2"


@pytest.mark.parametrize(
    ("point", "live"), [("before_rename", "v1"), ("before_current", "v1"), ("after_current", "v2")]
)
def test_a_kill_while_publishing_leaves_the_old_version_or_the_new(uri: str, point: str, live: str) -> None:
    publish(uri, "one")
    code = (
        "from tests.rayvec.indexing.test_places import *; import os, sys\n"
        f"with places.working({uri!r}, lease_s={LEASE_S}) as folder:\n"
        "    make(folder, 'two')\n"
        f"    os.environ['RAYVEC_FAULT'] = {point!r}"
    )
    environment = worker_environment() | {"PYTHONPATH": os.pathsep.join(["platform", "."])}
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, check=False)
    assert killed.returncode == 137
    assert places.current(uri) == live
    assert content_of(uri) == {"v1": "one", "v2": "two"}[live]
    publish(uri, "three")
    assert content_of(uri) == "three"


def test_a_second_writer_is_refused_and_changes_nothing(uri: str) -> None:
    publish(uri, "one")
    with sole_writer(uri, LEASE_S):
        with pytest.raises(ConcurrentWriterError, match="another run"):
            publish(uri, "two")
        with pytest.raises(ConcurrentWriterError, match="another run"):
            places.prune(uri, 1)
    assert content_of(uri) == "one"


def test_a_version_of_the_same_name_is_never_replaced(uri: str, tmp_path: Path) -> None:
    publish(uri, "one")
    make(tmp_path, "another one")
    with pytest.raises(ConcurrentWriterError, match="v1"):
        bucket.publish(uri, versions.version_folder(tmp_path))
    assert content_of(uri) == "one"


def test_one_goes_back_and_prunes_what_no_version_has(uri: str) -> None:
    publish(uri, "one")
    for content in ("two", "three"):
        publish(uri, content, "one")
    assert places.rollback(uri) == "v2" and content_of(uri) == "two"
    assert places.rollback(uri, "v3") == "v3"
    assert places.prune(uri, keep=1) == ["v1", "v2"]
    assert content_of(uri) == "three"
    assert len(objects(uri)) == 2, "one's, which three has too, and its own"
    with pytest.raises(UserError, match="no version before v3"):
        places.rollback(uri)
    with pytest.raises(UserError, match="has no version 'v1'; there are: v3"):
        places.version_folder(uri, "v1")
    with pytest.raises(UserError, match="keep at least 1"):
        places.prune(uri, keep=0)


def test_going_back_to_a_version_without_one_of_its_files_is_refused(uri: str) -> None:
    publish(uri, "one")
    (one,) = objects(uri)
    publish(uri, "two")
    storage.delete(uris.join(uri, "files", one))
    with pytest.raises(VerificationError, match="is missing"):
        places.rollback(uri)
    assert content_of(uri) == "two"


def test_what_is_open_stays_on_the_machine_and_older_versions_go(uri: str) -> None:
    publish(uri, "0")
    held = versions.hold(places.version_folder(uri))
    for number in range(1, 5):
        publish(uri, str(number))
        content_of(uri)
    there = versions.list_versions(mirrors.folder_of(uri))
    os.close(held)
    assert "v1" in there and "v2" not in there and {"v4", "v5"} <= set(there)


def write(uri: str, seed: int = 0) -> None:
    """An index of two shards that can be searched."""
    with places.working(uri, lease_s=LEASE_S) as folder:
        write_index(folder, random_vectors(40, 8, seed), texts_for(40), pieces=2)


def test_an_index_is_searched_where_it_is_copied_to_and_a_damaged_copy_is_mended(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(uri)
    another_machine(monkeypatch, tmp_path / "second")
    queries = random_vectors(40, 8)[:3]
    found = Index.open(uri).dense(queries, 1)
    assert found.rows[:, 0].tolist() == [0, 1, 2]
    shard = next(places.version_folder(uri).glob("*.faiss"))
    content = shard.read_bytes()
    shard.write_bytes(bytes(len(content)))
    assert Index.open(uri).dense(queries, 1).rows[:, 0].tolist() == [0, 1, 2]
    assert shard.read_bytes() == content
    place = uris.join(uri, "files", storage.sha256_bytes(content))
    storage.write_bytes(place, bytes(len(content)))
    shard.unlink()
    with pytest.raises(VerificationError, match="is damaged"):
        Index.open(uri)
    storage.write_bytes(place, content)
    assert Index.open(uri).count == 40


def test_a_part_copies_its_own_files_alone(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(uri)
    another_machine(monkeypatch, tmp_path / "second")
    parts = [Index.open(uri, part=Part(0, 2))]
    folder = places.version_folder(uri, part=Part(0, 2))
    assert sorted(path.name for path in folder.glob("*.faiss")) == ["shard-00000.faiss"]
    parts.append(Index.open(uri, part=Part(1, 2)))
    assert sum(len(part.shards) for part in parts) == 2
    assert Index.open(uri).count == 40


def test_what_is_no_index_is_refused_with_the_cure(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index .* python -m jobs\.index"):
        Index.open(uri)
    write_embeddings(tmp_path / "embeddings", random_vectors(4, 8), texts_for(4))
    storage.copy_tree(tmp_path / "embeddings", uri)
    with pytest.raises(UserError, match="holds embeddings, not an index"):
        Index.open(uri)
    with pytest.raises(UserError, match="holds embeddings, not an index"):
        publish(uri, "over them")
    storage.write_bytes(uris.join(uri, "CURRENT"), b"../v1\n")
    with pytest.raises(VerificationError, match="is not a version"):
        places.current(uri)
