"""Versions: published whole or not at all, also when the process is killed at any system call."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines._ray import worker_environment
from rayvec import storage
from rayvec.errors import ConcurrentWriterError, StorageError, UserError, VerificationError
from rayvec.indexing import drafts, versions


def publish(output: Path, content: str) -> str:
    with drafts.new_version(output) as draft:
        (draft.folder / "data").write_text(content)
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "data").write_text(content)
        draft.commit({"content": content})
    return draft.name


def content_of(output: Path, version: str | None = None) -> str:
    folder = versions.version_folder(output, version)
    versions.verify(folder, versions.read_manifest(folder))
    return (folder / "deep" / "data").read_text()


def test_the_newest_version_is_live_and_the_older_stay(tmp_path: Path) -> None:
    assert [publish(tmp_path, text) for text in ("one", "two")] == ["v1", "v2"]
    assert (tmp_path / "CURRENT").read_text() == "v2\n"
    assert content_of(tmp_path) == "two"
    assert content_of(tmp_path, "v1") == "one"


def test_versions_are_listed_by_number(tmp_path: Path) -> None:
    for number in range(11):
        publish(tmp_path, str(number))
    assert versions.list_versions(tmp_path) == [f"v{number}" for number in range(1, 12)]


def test_a_draft_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    with pytest.raises(ZeroDivisionError), drafts.new_version(tmp_path):
        _ = 1 / 0
    assert storage.list_names(tmp_path / "versions") == ["v1"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "versions" / ".v1.12345678.tmp"
    left.mkdir(parents=True)
    (left / "data").write_text("half")
    publish(tmp_path, "one")
    assert storage.list_names(tmp_path / "versions") == ["v1"]


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "WAIT_S", 0)
    with drafts.new_version(tmp_path), pytest.raises(ConcurrentWriterError, match="another process is writing"):
        publish(tmp_path, "two")


def test_rollback_goes_to_the_version_before_and_verifies_it(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    assert versions.rollback(tmp_path) == "v1"
    assert content_of(tmp_path) == "one"
    with pytest.raises(UserError, match="no version before v1"):
        versions.rollback(tmp_path)


def test_rollback_to_a_damaged_version_is_refused_and_the_live_one_stays(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    (tmp_path / "versions" / "v1" / "data").write_text("oen")
    with pytest.raises(VerificationError, match="v1/data"):
        versions.rollback(tmp_path, "v1")
    assert content_of(tmp_path) == "two"


def test_after_a_rollback_no_name_is_used_twice(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    versions.rollback(tmp_path)
    assert publish(tmp_path, "three") == "v3"


def take_all(output: Path, source: Path) -> None:
    """A version that takes over every file of another."""
    manifest = versions.read_manifest(source)
    with drafts.new_version(output) as draft:
        draft.take(source, manifest, manifest["files"])
        draft.commit({"content": manifest["content"]})


def test_files_that_are_taken_over_are_links_with_their_checksums(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    first = versions.version_folder(tmp_path)
    take_all(tmp_path, first)
    second = versions.version_folder(tmp_path)
    assert (second / "deep" / "data").samefile(first / "deep" / "data")
    assert versions.read_manifest(second)["files"] == versions.read_manifest(first)["files"]
    versions.prune(tmp_path, keep=1)
    assert content_of(tmp_path) == "one" and not first.exists()


def test_a_link_of_another_size_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    first = versions.version_folder(tmp_path)
    (first / "data").write_text("four")
    with pytest.raises(VerificationError, match="v1/data does not match"):
        take_all(tmp_path, first)
    assert storage.list_names(tmp_path / "versions") == ["v1"]


def test_a_damaged_file_is_told_when_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, "one")
    first = versions.version_folder(tmp_path)
    (first / "data").write_text("oen")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(VerificationError, match="v1/data does not match"):
        take_all(tmp_path, first)


def refuse(self: Path, target: Path) -> None:
    raise OSError("no links here")


def test_going_back_leads_to_the_version_that_was_live_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    versions.rollback(tmp_path)
    publish(tmp_path, "three")  # made after v1: v2 was rejected
    assert versions.read_manifest(versions.version_folder(tmp_path))["parent"] == "v1"
    assert versions.rollback(tmp_path) == "v1"


def test_one_goes_back_from_a_damaged_version_too(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    (tmp_path / "versions" / "v2" / "manifest.json").write_text("{}")
    assert versions.rollback(tmp_path) == "v1"


def test_a_version_that_never_was_live_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts, "point_to", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish(tmp_path, "two")
    assert versions.list_versions(tmp_path) == ["v1", "v2"] and content_of(tmp_path) == "one"
    assert publish(tmp_path, "three") == "v2"
    assert content_of(tmp_path) == "three"


def test_without_a_history_nothing_is_taken_to_be_left_over(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    versions.rollback(tmp_path)
    (tmp_path / "HISTORY").unlink()
    publish(tmp_path, "three")
    assert versions.list_versions(tmp_path) == ["v1", "v2", "v3"]


def test_the_history_is_shortened_to_what_is_there_and_the_highest_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "GONE_LINES", 10)
    history = tmp_path / "HISTORY"
    for number in range(40):
        publish(tmp_path, str(number))
        versions.prune(tmp_path, keep=2)
        assert len(history.read_text().split()) <= 2 + 10 + 2
    # v41 is finished, live, left by a rollback, and removed by hand.
    publish(tmp_path, "rejected")
    versions.rollback(tmp_path)
    shutil.rmtree(tmp_path / "versions" / "v41")
    for _ in range(15):
        versions.point_to(tmp_path, "v40")
    with versions.writing(tmp_path):
        assert history.read_text().split() == ["v39", "v40", "v41"]
    # One that never was live is still told apart from those that were.
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "point_to", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish(tmp_path, "killed")
    assert versions.list_versions(tmp_path)[-1] == "v42" and content_of(tmp_path) == "39"
    assert publish(tmp_path, "last") == "v42" and content_of(tmp_path, "v42") == "last"


def test_a_writer_waits_for_one_that_is_soon_done_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's writes hold the index for a moment each: what a job does is not a matter of chance beside them."""
    publish(tmp_path, "one")
    with contextlib.ExitStack() as service:
        service.enter_context(versions.writing(tmp_path))
        done = threading.Timer(0.3, service.pop_all().close)
        done.start()
        with pytest.raises(ConcurrentWriterError), drafts.new_version(tmp_path, waits=False):
            pass
        assert publish(tmp_path, "two") == "v2"
        done.join()
    monkeypatch.setattr(versions, "WAIT_S", 0.1)
    with versions.writing(tmp_path), pytest.raises(ConcurrentWriterError, match="another process is writing"):
        publish(tmp_path, "three")


def test_prune_keeps_the_newest_and_the_live(tmp_path: Path) -> None:
    for number in range(5):
        publish(tmp_path, str(number))
    versions.rollback(tmp_path, "v2")
    assert versions.prune(tmp_path, keep=2) == ["v1", "v3"]
    assert versions.list_versions(tmp_path) == ["v2", "v4", "v5"]


def lock_as_nfs_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux makes of flock over NFS a lock by fcntl, which wants a descriptor that may do what is locked against."""
    real = fcntl.flock

    def flock(file: Any, how: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if how & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_prune_locks_as_nfs_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        publish(tmp_path, str(number))
    lock_as_nfs_does(monkeypatch)
    held = versions.hold(tmp_path / "versions" / "v2")
    assert versions.prune(tmp_path, keep=1) == ["v1", "v3"]
    os.close(held)
    assert versions.prune(tmp_path, keep=1) == ["v2"]


def test_a_version_stays_where_it_cannot_be_known_whether_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        publish(tmp_path, str(number))
    lock_as_nfs_does(monkeypatch)
    # A manifest that may only be read, and a user who is not root.
    monkeypatch.setattr(versions, "_open_to_lock", lambda path: os.open(path, os.O_RDONLY))
    assert versions.prune(tmp_path, keep=1) == []
    assert versions.list_versions(tmp_path) == ["v1", "v2"]


def test_a_mount_without_locks_is_told_apart_from_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=r"has no locks \(.*; choose a folder"):
        publish(tmp_path, "one")


def test_prune_of_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        versions.prune(tmp_path, keep=0)


def test_a_folder_without_an_index_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m jobs\.index"):
        versions.current(tmp_path)


@pytest.mark.parametrize("name", ["v9", "../v1", "v1/", "", "v01", "V1"])
def test_a_version_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    publish(tmp_path, "one")
    with pytest.raises(UserError, match="there are: v1"):
        versions.version_folder(tmp_path, name)


@pytest.mark.parametrize("content", [b"", b"v7\n", b"\xff\xfe", b"../../etc"])
def test_a_damaged_pointer_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    publish(tmp_path, "one")
    (tmp_path / "CURRENT").write_bytes(content)
    with pytest.raises(VerificationError, match="CURRENT"):
        versions.current(tmp_path)


def test_an_object_store_is_refused_with_the_cure() -> None:
    with pytest.raises(UserError, match="mounted folder"):
        versions.list_versions("s3://bucket/index")


def test_every_single_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    publish(tmp_path, "one")
    folder = tmp_path / "versions" / "v1"
    path = folder / "manifest.json"
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in (position % 8, (position + 3) % 8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bytes(bad))
            with pytest.raises(VerificationError):
                versions.read_manifest(folder)
    path.write_bytes(good)
    assert versions.read_manifest(folder)["content"] == "one"


def test_the_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    for text in ("one", "two"):
        publish(tmp_path, text)
    newer = (tmp_path / "versions" / "v2" / "manifest.json").read_bytes()
    (tmp_path / "versions" / "v1" / "manifest.json").write_bytes(newer)
    with pytest.raises(VerificationError, match="is of version v2, not v1"):
        content_of(tmp_path, "v1")


# Kills a fork of itself with SIGKILL just before the n-th file operation of publishing, for every n, and tells what
# a reader then finds. Audit hooks see each open, mkdir, rename, replace, link and remove that Python makes.
KILLER = """
import json, os, signal, sys
from pathlib import Path
from rayvec.indexing import drafts, versions

EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "fcntl.flock"}
output = Path(sys.argv[1])

def publish(content):
    with drafts.new_version(output) as draft:
        (draft.folder / "data").write_text(content)
        draft.commit({"content": content})

def killed_before(n):
    child = os.fork()
    if child == 0:
        seen = 0
        def hook(event, arguments):
            nonlocal seen
            if event in EVENTS:
                seen += 1
                if seen == n:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        publish(f"new {n}")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

publish("first")
last, n, points = "first", 1, []
while killed_before(n):
    folder = versions.version_folder(output)
    manifest = versions.read_manifest(folder)
    versions.verify(folder, manifest)
    content = (folder / "data").read_text()
    points.append([n, content == last or content == f"new {n}", content == manifest["content"], content == f"new {n}"])
    last = content
    n += 1
publish("last")
left = [name for name in os.listdir(output / "versions") if name.startswith(".")]
print(json.dumps({"points": points, "left": left, "live": (versions.version_folder(output) / "data").read_text()}))
"""


def test_a_kill_at_any_file_operation_leaves_the_old_version_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)],
        env={**os.environ, **worker_environment()}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert len(result["points"]) > 10
    assert all(expected and whole for _, expected, whole, _ in result["points"])
    # Both sides of the swap were reached: kills that left the old one live, and kills that came after it.
    assert {new for *_, new in result["points"]} == {False, True}
    assert result["left"] == [] and result["live"] == "last"
