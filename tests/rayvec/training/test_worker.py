"""One worker alone: the run resumed equals the run left alone to the bit; what goes wrong is told, with its step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipelines.train import TrainConfig, train
from rayvec.errors import MismatchError, RayvecError
from rayvec.training.loop import DivergedError
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import Mntp, Simcse
from rayvec.training.worker import require_equal_ranks
from tests.runs import LORA, adapter, config, write_inputs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def as_killed_after_step(output: Path, run: TrainConfig, step: int) -> None:
    """Leave the folder as a kill after this checkpoint would: no result, no later checkpoint, a torn one beside it."""
    for path in (output / "report.json", output / "rayvec.json"):
        path.unlink()
    shutil.rmtree(output / "adapters")
    root = output / "training" / "checkpoints"
    last = root / f"step-{run.steps:08d}"
    (last / "rank-0.json").unlink()
    assert (root / f"step-{step:08d}" / "rank-0.json").exists()


@pytest.mark.parametrize("kind", ["mntp", "simcse"])
def test_a_resumed_run_equals_one_left_alone_to_the_bit(inputs: Path, tmp_path: Path, kind: str) -> None:
    dropout = LORA.replace(dropout=0.1)
    stage = Mntp(lora=dropout) if kind == "mntp" else Simcse(lora=dropout)
    run = config(inputs, tmp_path / "run", kind, stage=stage)
    train(run)
    whole, lines = adapter(tmp_path / "run"), (tmp_path / "run/training/metrics.jsonl").read_text(encoding="utf-8")
    as_killed_after_step(tmp_path / "run", run, 2)
    report = train(run)
    assert report["resumed_from_step"] == 2
    assert adapter(tmp_path / "run") == whole
    again = (tmp_path / "run/training/metrics.jsonl").read_text(encoding="utf-8")
    assert _without_speed(again) == _without_speed(lines)


def _without_speed(lines: str) -> list[str]:
    return [line.split('"tokens_per_second"')[0] for line in lines.splitlines()]


def test_a_diverging_run_stops_and_names_step_documents_and_checkpoint(inputs: Path, tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e30, schedule="constant")
    run = config(inputs, tmp_path / "run", optimizer=wild, checkpoint_every=1)
    with pytest.raises(DivergedError, match=r"at step 1; the batch holds doc-\d+.*last whole checkpoint is of step 1"):
        train(run)
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_checkpoint_of_another_configuration_is_refused(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "run")
    train(run)
    with pytest.raises(MismatchError, match="seed: 0 there, 1 asked for"):
        train(run.replace(seed=1))


def test_equal_ranks_of_one_process() -> None:
    require_equal_ranks({"w": torch.ones(2)}, step=1)


def test_unequal_ranks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayvec.training import worker

    def other(everybody: list[str], mine: str) -> None:
        everybody[:] = [mine, "something else"]

    monkeypatch.setattr(worker, "world_size", lambda: 2)
    monkeypatch.setattr(worker.dist, "all_gather_object", other)
    with pytest.raises(RayvecError, match="ranks differ after step 3"):
        require_equal_ranks({"w": torch.ones(2)}, step=3)
