"""The folder of a run at a URI: what is pushed is pulled whole, checkpoints are found and fetched, torn ones are not.

The URI is fsspec's local://, which every part of the code must treat as remote; tests/cluster has a real S3 server.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayvec import storage
from rayvec.training import checkpoints
from rayvec.training.checkpoints import CheckpointRecord
from rayvec.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return RunFolder(f"local://{tmp_path}/bucket/run")


def _checkpoint(path: Path, step: int) -> Path:
    path.mkdir(parents=True)
    for rank in range(2):
        record = CheckpointRecord(step=step, rank=rank, world_size=2, config="abc", files={})
        checkpoints.write(path, record, weights={"w": torch.full((2,), float(step))}, optimizer={}, metrics="")
    return path


def test_a_path_is_its_own_machine_folder(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    assert (folder.remote, folder.local) == (False, tmp_path)
    assert folder.pull("training/data", last="store.json") == tmp_path / "training" / "data"


def test_what_one_machine_pushes_another_pulls(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder.local / "training" / "data"
    data.mkdir(parents=True)
    (data / "store.json").write_text("{}")
    (data / "tokens.int32").write_bytes(b"1234")
    folder.push("training/data", last="store.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    pulled = folder.pull("training/data", last="store.json")
    assert pulled != data and (pulled / "tokens.int32").read_bytes() == b"1234"
    assert (pulled / "store.json").exists()


def test_a_copy_that_broke_off_is_made_again(folder: RunFolder, tmp_path: Path) -> None:
    there = tmp_path / "bucket" / "run" / "training" / "data"
    there.mkdir(parents=True)
    (there / "store.json").write_text("{}")
    (there / "tokens.int32").write_bytes(b"1234")
    (folder.local / "training" / "data").mkdir(parents=True)
    (folder.local / "training" / "data" / "tokens.int32").write_bytes(b"12")
    assert (folder.pull("training/data", last="store.json") / "tokens.int32").read_bytes() == b"1234"


def test_the_newest_whole_checkpoint_is_fetched(folder: RunFolder, tmp_path: Path) -> None:
    root = tmp_path / "bucket" / "run" / "training" / "checkpoints"
    _checkpoint(root / "attempt-001" / "a", 2)
    _checkpoint(root / "attempt-002" / "b", 4)
    torn = _checkpoint(root / "attempt-002" / "c", 6)
    (torn / "optimizer-1.safetensors").write_bytes(b"torn")
    found = folder.newest_checkpoint()
    assert found is not None and checkpoints.verify(found).step == 4
    assert found.is_relative_to(folder.local)
    (found / "weights.safetensors").write_bytes(b"damaged on this machine")
    again = folder.newest_checkpoint()
    assert again is not None and checkpoints.verify(again).step == 4


def test_the_sweep_leaves_the_newest(folder: RunFolder, tmp_path: Path) -> None:
    root = tmp_path / "bucket" / "run" / "training" / "checkpoints"
    for step in (2, 4, 6):
        _checkpoint(root / "attempt-001" / str(step), step)
    folder.sweep(keep=2)
    assert storage.list_names(folder.checkpoints + "/attempt-001") == ["4", "6"]


def test_without_a_checkpoint_there_is_none(folder: RunFolder) -> None:
    assert folder.newest_checkpoint() is None
