"""An index in a bucket (a real S3 server): published whole or not at all, and copied to who reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipelines._ray import worker_environment
from rayvec import storage, uris
from rayvec.errors import ConcurrentWriterError, StorageError, UserError, VerificationError
from rayvec.indexing import bucket, drafts, mirrors, places, versions
from rayvec.indexing.part import Part
from rayvec.indexing.searcher import Index
from rayvec.lease import Guard, sole_writer
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


def make(folder: Path, content: str, *kept: str, **facts: Any) -> str:
    """A version in a folder, with a file of its own; `kept` are files of the live version."""
    with drafts.new_version(folder) as draft:
        (draft.folder / content).write_text(content)
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "data").write_text(content)
        if kept:
            before = versions.version_folder(folder)
            draft.take(before, versions.read_manifest(before), kept)
        draft.commit({"content": content, **facts})
    (folder / "report.json").write_text(content)
    return draft.name


def build(uri: str, content: str) -> str:
    """As a build does; what is there already, or was made and not sent, is not made again."""
    with places.building(uri, lambda manifest: manifest["content"] == content, lease_s=LEASE_S) as place:
        if place.finished is not None:
            return f"{place.finished['version']} was there"
        return make(place.folder, content, **place.facts)


def update(uri: str, content: str, *kept: str) -> str:
    """As an update does, over the live version."""
    with places.working(uri, lease_s=LEASE_S) as folder:
        return make(folder, content, *kept)


def content_of(uri: str, version: str | None = None) -> str:
    folder = places.version_folder(uri, version)
    versions.verify(folder, versions.read_manifest(folder))
    return (folder / "deep" / "data").read_text()


def objects(uri: str) -> list[str]:
    return storage.list_names(uris.join(uri, "files"))


def fail(*_: object) -> None:
    raise StorageError("the store cannot be reached")


def test_what_a_job_made_live_is_live_in_the_bucket_and_read_on_another_machine(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (build(uri, "one"), update(uri, "two")) == ("v1", "v2")
    another_machine(monkeypatch, tmp_path / "second")
    assert places.current(uri) == "v2" and places.list_versions(uri) == ["v1", "v2"]
    assert places.read_manifest(uri)["content"] == "two"
    assert not mirrors.folder_of(uri).exists(), "a manifest is read without its files"
    assert (content_of(uri), content_of(uri, "v1")) == ("two", "one")
    assert (update(uri, "three"), build(uri, "four")) == ("v3", "v4")
    assert content_of(uri) == "four"
    assert [places.read_manifest(uri, name)["parent"] for name in ("v1", "v2", "v3", "v4")] == [None, "v1", "v2", "v3"]
    assert storage.read_bytes(uris.join(uri, "report.json")) == b"four"


def test_files_that_versions_share_are_sent_once_and_are_one_file_here(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(uri, "one")
    assert len(objects(uri)) == 1, "two files of one content"
    update(uri, "two", "one")
    assert len(objects(uri)) == 2
    another_machine(monkeypatch, tmp_path / "second")
    old, new = places.version_folder(uri, "v1"), places.version_folder(uri, "v2")
    assert (old / "one").samefile(new / "one")


def test_a_build_that_is_there_is_not_made_again_nor_copied(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(uri, "one")
    another_machine(monkeypatch, Path("/nowhere"))
    assert build(uri, "one") == "v1 was there"


def test_a_build_that_could_not_be_sent_is_sent_by_the_same_build(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build(uri, "one")
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(bucket, "publish", fail)
        build(uri, "two")
    assert content_of(uri) == "one"
    assert build(uri, "two") == "v2 was there"
    assert (places.current(uri), content_of(uri)) == ("v2", "two")
    assert storage.read_bytes(uris.join(uri, "report.json")) == b"two"


@pytest.mark.parametrize("change", [build, update])
def test_what_could_not_be_sent_is_no_part_of_what_is_sent_next(
    uri: str, monkeypatch: pytest.MonkeyPatch, change: Callable[[str, str], str]
) -> None:
    build(uri, "one")
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(bucket, "publish", fail)
        change(uri, "lost")
    with places.working(uri) as folder:
        assert versions.current(folder) == "v1"
    assert storage.read_bytes(uris.join(uri, "report.json")) == b"one", "of a job that was lost, nothing is told"
    assert change(uri, "two") == "v3", "a number is not given twice"
    assert places.list_versions(uri) == ["v1", "v3"]
    assert places.read_manifest(uri)["parent"] == "v1"


def test_a_version_that_was_gone_back_from_is_not_taken_for_one_that_was_not_sent(uri: str) -> None:
    for content in ("one", "two"):
        build(uri, content)
    places.rollback(uri)
    assert build(uri, "two") == "v3", "who went back from it is told by a version of its own"
    assert places.read_manifest(uri)["parent"] == "v1"


def test_a_damaged_live_version_is_built_anew(uri: str) -> None:
    build(uri, "one")
    (file,) = (uris.join(uri, "files", name) for name in objects(uri))
    content = storage.read_bytes(file)
    storage.delete(file)
    assert build(uri, "one") == "v2"
    storage.write_bytes(file, bytes(len(content)))
    assert build(uri, "three") == "v3"
    storage.write_bytes(uris.join(uri, "versions", "v3.json"), b"{}")
    assert build(uri, "four") == "v4"
    storage.write_bytes(uris.join(uri, "CURRENT"), b"v4")
    assert build(uri, "one") == "v5"
    assert content_of(uri) == "one", "what was damaged in its size is sent again"


def test_a_version_of_another_machine_takes_the_place_of_one_that_was_not_sent(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(bucket, "publish", fail)
        build(uri, "mine")
    with monkeypatch.context() as patch:
        another_machine(patch, tmp_path / "second")
        assert build(uri, "theirs") == "v1"
    held = versions.hold(versions.version_folder(mirrors.folder_of(uri), "v1"))
    with pytest.raises(UserError, match="is open on this machine"):
        content_of(uri)
    os.close(held)
    assert content_of(uri) == "theirs"
    assert build(uri, "mine") == "v2"


def test_who_has_lost_the_lease_makes_nothing_live(uri: str) -> None:
    build(uri, "one")

    class Lost(Guard):
        def check(self) -> None:
            raise ConcurrentWriterError("another run has taken over")

    folder = places.version_folder(uri)
    changes: list[Callable[[], Any]] = [
        lambda: bucket.publish(uri, folder, Lost()),
        lambda: bucket.rollback(uri, Lost(), "v1"),
        lambda: bucket.remove(uri, ["v1"], Lost()),
    ]
    for change in changes:
        with pytest.raises(ConcurrentWriterError, match="taken over"):
            change()
    assert content_of(uri) == "one"


def test_files_that_another_run_removed_meanwhile_keep_a_version_from_going_live(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(uri, "one")

    class Removes(Guard):
        def check(self) -> None:
            bucket.remove(uri, [], Guard())  # files of no version

    with monkeypatch.context() as patch, pytest.raises(VerificationError, match="is missing"):
        patch.setattr(mirrors, "sole_writer", lambda *_: nullcontext(Removes()))
        build(uri, "two")
    assert content_of(uri) == "one"


@pytest.mark.parametrize(
    ("point", "live"), [("before_rename", "v1"), ("before_current", "v1"), ("after_current", "v2")]
)
def test_a_kill_while_publishing_leaves_the_old_version_or_the_new(uri: str, point: str, live: str) -> None:
    build(uri, "one")
    code = (
        "from tests.rayvec.indexing.test_places import *\n"
        "real = bucket.publish\n"
        "def publish(*values):\n"
        f"    os.environ['RAYVEC_FAULT'] = {point!r}\n"
        "    real(*values)\n"
        f"bucket.publish = publish; build({uri!r}, 'two')"
    )
    environment = worker_environment() | {"PYTHONPATH": os.pathsep.join(["platform", "."])}
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, check=False)
    assert killed.returncode == 137
    assert places.current(uri) == live
    assert content_of(uri) == {"v1": "one", "v2": "two"}[live]
    assert build(uri, "two") == "v2 was there"
    assert content_of(uri) == "two"


def test_a_second_writer_is_refused_and_changes_nothing(uri: str) -> None:
    build(uri, "one")
    with sole_writer(uri, LEASE_S):
        for change in (build, update):
            with pytest.raises(ConcurrentWriterError, match="another run"):
                change(uri, "two")
        with pytest.raises(ConcurrentWriterError, match="another run"):
            places.prune(uri, 1)
    assert content_of(uri) == "one"


def test_a_version_of_the_same_name_is_never_replaced(uri: str, tmp_path: Path) -> None:
    build(uri, "one")
    make(tmp_path, "another one")
    with pytest.raises(ConcurrentWriterError, match="v1"):
        bucket.publish(uri, versions.version_folder(tmp_path), Guard())
    assert content_of(uri) == "one"


def test_one_goes_back_and_prunes_what_no_version_has(uri: str) -> None:
    build(uri, "one")
    for content in ("two", "three"):
        update(uri, content, "one")
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
    build(uri, "one")
    (one,) = objects(uri)
    update(uri, "two")
    storage.delete(uris.join(uri, "files", one))
    with pytest.raises(VerificationError, match="is missing"):
        places.rollback(uri)
    assert content_of(uri) == "two"


def test_what_is_open_stays_on_the_machine_and_older_versions_go(uri: str) -> None:
    build(uri, "0")
    held = versions.hold(places.version_folder(uri))
    for number in range(1, 5):
        build(uri, str(number))
        content_of(uri)
    there = versions.list_versions(mirrors.folder_of(uri))
    os.close(held)
    assert there == ["v1", "v4", "v5"]


def write(uri: str, seed: int = 0) -> None:
    """An index of two shards that can be searched."""
    with places.building(uri, lambda _: False, lease_s=LEASE_S) as place:
        write_index(place.folder, random_vectors(40, 8, seed), texts_for(40), pieces=2)


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


def test_a_job_that_finds_its_copy_damaged_has_a_whole_one_when_it_is_run_again(uri: str) -> None:
    build(uri, "one")
    damaged = places.version_folder(uri) / "deep" / "data"
    damaged.write_bytes(b"eno")

    def job() -> None:
        with places.working(uri, lease_s=LEASE_S) as folder:
            version = versions.version_folder(folder)
            versions.verify(version, versions.read_manifest(version))

    with pytest.raises(VerificationError, match="which the next run makes good"):
        job()
    job()
    assert damaged.read_bytes() == b"one"


def test_a_part_copies_its_own_files_alone(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(uri)
    another_machine(monkeypatch, tmp_path / "second")
    parts = [Index.open(uri, part=Part(0, 2))]
    folder = places.version_folder(uri, part=Part(0, 2))
    assert sorted(path.name for path in folder.glob("*.faiss")) == ["shard-00000.faiss"]
    parts.append(Index.open(uri, part=Part(1, 2)))
    assert sum(len(part.shards) for part in parts) == 2
    assert Index.open(uri).count == 40


def test_a_store_that_fails_while_a_version_is_copied_is_told_in_one_line(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(uri, "one")
    data = bucket.manifest_bytes(uri, "v1")
    monkeypatch.setattr(bucket, "manifest_bytes", lambda *_: data)
    mirrors.versions.remove_unless_held(mirrors.folder_of(uri), "v1")
    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match="cannot be reached"),
    ):
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        mirrors.fetch(uri, "v1")


def test_what_is_no_index_is_refused_with_the_cure(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no index .* python -m jobs\.index"):
        Index.open(uri)
    with pytest.raises(UserError, match=r"holds no index .* python -m jobs\.index"):
        update(uri, "nothing")
    write_embeddings(tmp_path / "embeddings", random_vectors(4, 8), texts_for(4))
    storage.copy_tree(tmp_path / "embeddings", uri)
    with pytest.raises(UserError, match="holds embeddings, not an index"):
        Index.open(uri)
    for change in (build, update):
        with pytest.raises(UserError, match="holds embeddings, not an index"):
            change(uri, "over them")
    storage.write_bytes(uris.join(uri, "CURRENT"), b"../v1\n")
    with pytest.raises(VerificationError, match="is not a version"):
        places.current(uri)
