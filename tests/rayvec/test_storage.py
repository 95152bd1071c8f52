"""Storage: whole files or none, put-if-absent, checksums."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from rayvec import storage
from rayvec.errors import StorageError, UserError, VerificationError


def test_write_then_read(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "a" / "b", b"x")
    assert storage.read_bytes(tmp_path / "a" / "b") == b"x"


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "a", b"1")
    storage.write_bytes(tmp_path / "a", b"2")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_put_if_absent_lets_exactly_one_of_many_win(tmp_path: Path) -> None:
    barrier, won = threading.Barrier(8), []

    def put(i: int) -> None:
        barrier.wait()
        if storage.put_if_absent(tmp_path / "v1.json", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.read_bytes(tmp_path / "v1.json")] == [str(i).encode() for i in won]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path, data = tmp_path / "part", b"some bytes"
    path.write_bytes(damage(data))
    with pytest.raises(VerificationError, match="part"):
        storage.check_file(path, bytes_=len(data), sha256=storage.sha256_bytes(data))


def test_json_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"a": ')
    with pytest.raises(VerificationError, match="not valid JSON"):
        storage.read_json(tmp_path / "m.json")


def test_a_committed_folder_appears_whole(tmp_path: Path) -> None:
    with storage.committed_folder(tmp_path / "v") as folder:
        (folder / "f").write_text("x")
        assert not (tmp_path / "v").exists()
    assert (tmp_path / "v" / "f").read_text() == "x"


def test_a_failed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "f").write_text("old")
    with pytest.raises(RuntimeError), storage.committed_folder(tmp_path / "v"):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["v"]
    assert (tmp_path / "v" / "f").read_text() == "old"


def test_a_compressed_file_is_its_bytes(tmp_path: Path) -> None:
    data = b"\x1f\x8b and so on"
    (tmp_path / "f.gz").write_bytes(data)
    assert storage.read_bytes(tmp_path / "f.gz") == data
    assert storage.sha256_file(tmp_path / "f.gz") == storage.sha256_bytes(data)


def test_an_unknown_scheme_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="nosuch://"):
        storage.filesystem("nosuch://bucket/key")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageError, match=r"has no hard links \(.*; choose a folder on another one, or, .* own URI"):
        storage.put_if_absent(tmp_path / "v1.json", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (storage.make_folder, lambda uri: storage.write_bytes(f"{uri}/x", b"1")):
        with pytest.raises(UserError, match="lies below a file"):
            act(str(tmp_path / "file" / "out"))
