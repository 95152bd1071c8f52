"""One writer at a time: a lock on a folder, a lease in a bucket (a real S3 server)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayvec import lease, object_stores, storage
from rayvec.errors import ConcurrentWriterError, StorageError, UserError
from rayvec.lease import Lease, sole_writer
from tests.buckets import s3_server
from tests.corpora import in_a_process

#: Long enough for a busy machine to give signs of life, and short enough to wait for the death of one that does not.
ALIVE_S, DEAD_S = 12.0, 0.5


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as uri:
        yield uri


@pytest.fixture
def output(bucket: str, request: pytest.FixtureRequest) -> str:
    return f"{bucket}/{request.node.name}"


def leases(output: str) -> list[str]:
    return storage.list_names(f"{output}/.lease")


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        sole_writer(str(tmp_path)),
        pytest.raises(ConcurrentWriterError, match=f"process {os.getpid()}"),
        sole_writer(str(tmp_path)),
    ):
        pass


def test_a_writer_that_is_done_leaves_the_folder_free(tmp_path: Path) -> None:
    with sole_writer(str(tmp_path)):
        pass
    with sole_writer(str(tmp_path)) as guard:
        assert (tmp_path / ".lock").exists()
        guard.check()


def test_in_a_bucket_a_second_writer_is_refused_while_the_first_is_alive(output: str) -> None:
    with (
        sole_writer(output, ALIVE_S) as guard,
        pytest.raises(ConcurrentWriterError, match=rf"process {os.getpid()} on .* is writing {output}; wait for it"),
        sole_writer(output, ALIVE_S),
    ):
        pass
    guard.check()


def test_in_a_bucket_a_writer_that_is_done_leaves_the_output_free_at_once(output: str) -> None:
    for number in (1, 2, 3):
        with sole_writer(output, lease_s=3600):  # an hour is not waited
            assert leases(output) == [f"{number:06d}.json"]


def test_the_lease_of_a_killed_run_expires(output: str) -> None:
    code = f"from rayvec.lease import *; w = sole_writer({output!r}, 3600); w.__enter__(); os._exit(137)"
    assert in_a_process(code) == 137
    assert storage.read_json(f"{output}/.lease/000001.json")["released"] is False
    with sole_writer(output, DEAD_S):
        assert leases(output) == ["000002.json"]


def test_a_run_that_slept_past_its_lease_finds_it_lost(output: str) -> None:
    asleep = lease._acquire(output, DEAD_S)  # no thread keeps it alive
    with sole_writer(output, DEAD_S) as guard:
        asleep.beat()
        with pytest.raises(ConcurrentWriterError, match=rf"process {os.getpid()} .* has taken over {output}"):
            asleep.check()
        guard.check()
    asleep.release()  # and leaves the other's alone
    assert leases(output) == ["000002.json"]


def test_of_many_that_find_a_dead_lease_one_takes_over(output: str) -> None:
    lease._acquire(output, DEAD_S)
    won, refused = [], []

    def take() -> None:
        try:
            won.append(lease._acquire(output, DEAD_S))
        except ConcurrentWriterError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused), leases(output)) == (1, 5, ["000002.json"])


def test_a_number_that_was_given_and_removed_is_not_given_again(output: str) -> None:
    """A run that looked long ago, while two others came, of which the first has gone."""
    lease._claim(output, 7)
    with pytest.raises(ConcurrentWriterError):
        lease._claim(output, 6)
    assert leases(output) == ["000007.json"]


def test_a_lease_that_cannot_be_renewed_is_given_up() -> None:
    class Cut(Lease):
        def beat(self) -> None:
            raise StorageError("the store cannot be reached")

    cut = Cut("s3://bucket/out", 1)
    lease._keep(cut, 0.05, threading.Event())
    with pytest.raises(StorageError, match=r"could not be renewed for 0.05 s: the store cannot be reached"):
        cut.check()


def test_in_a_missing_bucket_no_lease_is_to_be_had(bucket: str) -> None:
    with pytest.raises(StorageError, match="no such bucket"), sole_writer("s3://nowhere/out"):
        pass


def test_a_store_that_ignores_conditions_is_refused(output: str) -> None:
    """The server is one that knows no such header: it never sees it."""

    def strip(params: dict[str, dict[str, str]], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)

    client = object_stores._s3_client(object_stores.s3_endpoint())
    client.meta.events.register("before-call.s3.PutObject", strip)
    try:
        with pytest.raises(UserError, match="overwrites what is to be written only if absent"), sole_writer(output):
            pass
    finally:
        client.meta.events.unregister("before-call.s3.PutObject", strip)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StorageError, match=r"has no locks \(.*; choose a folder"), sole_writer(str(tmp_path)):
        pass
