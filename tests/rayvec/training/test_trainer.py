"""Two workers under Ray Train and DeepSpeed: ranks equal to the bit (D4) and equal to one big batch; resumable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from pipelines.train import TrainConfig, train
from rayvec.errors import UserError
from rayvec.training.loop import DivergedError
from rayvec.training.optimizers import OptimizerConfig
from tests.runs import adapter, config, write_inputs

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),  # Ray warns of its own settings
]
TWO = {"workers": 2, "compare_ranks_every": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same runs in one process with the plain engine."""
    folder = tmp_path_factory.mktemp("alone")
    for kind in ("mntp", "supervised"):
        train(config(inputs, folder / kind, kind))
    return {kind: folder / kind for kind in ("mntp", "supervised")}


def _assert_close(first: Path, second: Path) -> None:
    a, b = load(adapter(first)), load(adapter(second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def together(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished supervised run of two workers under ZeRO 1; starting a group of workers is what takes time here."""
    run = config(inputs, tmp_path_factory.mktemp("together"), "supervised", zero="zero1", **TWO)
    train(run)  # compares the ranks after every step
    return run


@pytest.mark.parametrize("zero", ["zero0", "zero2"])
def test_two_ranks_stay_equal_to_the_bit_and_equal_one_big_batch(
    inputs: Path, tmp_path: Path, alone: dict[str, Path], zero: str
) -> None:
    train(config(inputs, tmp_path, "mntp", zero=zero, **TWO))
    _assert_close(tmp_path, alone["mntp"])


def test_negatives_of_both_ranks_give_the_one_big_batch(together: TrainConfig, alone: dict[str, Path]) -> None:
    _assert_close(Path(together.output), alone["supervised"])


def test_resumed_from_a_checkpoint_equals_left_alone_to_the_bit(together: TrainConfig) -> None:
    output = Path(together.output)
    whole = adapter(output)
    for name in ("report.json", "rayvec.json"):
        (output / name).unlink()
    shutil.rmtree(output / "adapters")
    attempt = output / "training" / "checkpoints" / "attempt-001"
    last = max(path for path in attempt.iterdir() if path.is_dir())
    (last / "optimizer-1.safetensors").write_bytes(b"torn")
    # As a kill while writing leaves it.
    snapshot = attempt / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot.read_text(encoding="utf-8")[:20], encoding="utf-8")
    assert train(together)["resumed_from_step"] == 2
    assert adapter(output) == whole


def test_all_ranks_stop_together_when_the_loss_is_not_finite(inputs: Path, tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e30, schedule="constant")
    with pytest.raises(DivergedError, match=r"at step 1; the batch holds doc-"):
        train(config(inputs, tmp_path, optimizer=wild, zero="zero0", **TWO))


def test_more_workers_than_cores_are_refused_at_once(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="50 workers need 50 CPUs"):
        train(config(inputs, tmp_path, workers=50))
