"""Checkpoints: what is written is read back; torn, damaged and foreign ones are refused or passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayvec.errors import MismatchError, VerificationError
from rayvec.training import checkpoints
from rayvec.training.checkpoints import CheckpointRecord


def _write(folder: Path, step: int, ranks: int = 2) -> Path:
    folder.mkdir(parents=True)
    for rank in range(ranks):
        record = CheckpointRecord(step=step, rank=rank, world_size=ranks, config="abc", files={})
        optimizer = {"0.exp_avg": torch.full((2,), float(rank))}
        checkpoints.write(folder, record, weights={"w": torch.ones(3)}, optimizer=optimizer, metrics="{}\n")
    return folder


def test_round_trip(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", step=7)
    found = checkpoints.load(folder, rank=1, world_size=2, config="abc")
    assert (found.step, found.weights["w"].tolist(), found.metrics) == (7, [1.0, 1.0, 1.0], "{}\n")
    assert [state["0.exp_avg"].tolist() for state in found.optimizers] == [[1.0, 1.0]]


def test_another_number_of_ranks_gets_the_state_of_all(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", step=7)
    found = checkpoints.load(folder, rank=0, world_size=3, config="abc")
    assert [state["0.exp_avg"].tolist() for state in found.optimizers] == [[0.0, 0.0], [1.0, 1.0]]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", step=7)
    data = bytearray((folder / "optimizer-1.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "optimizer-1.safetensors").write_bytes(data)
    with pytest.raises(VerificationError, match=r"optimizer-1\.safetensors does not match its checksum"):
        checkpoints.load(folder, rank=0, world_size=2, config="abc")


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    _write(tmp_path / "attempt-001" / "x", step=2)
    good = _write(tmp_path / "attempt-002" / "y", step=4)
    torn = _write(tmp_path / "attempt-003" / "z", step=6)
    (torn / "rank-1.json").unlink()
    assert checkpoints.newest(tmp_path) == good
    assert checkpoints.newest(tmp_path / "attempt-003") is None


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", step=7)
    with pytest.raises(MismatchError, match="another output"):
        checkpoints.load(folder, rank=0, world_size=2, config="xyz")
