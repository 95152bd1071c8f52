"""Two workers under Ray Train and DeepSpeed: ranks equal to the bit (D4) and equal to one big batch; resumable."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from pipelines.train import TrainConfig, train
from rayvec import storage
from rayvec.data.source_config import SourceConfig
from rayvec.errors import MismatchError, RayvecError, UserError
from rayvec.training.curves import read_metrics
from rayvec.training.loop import DivergedError
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import MaskedSet, Mntp, StsSet, Supervised
from rayvec.training.trainer import Workers, require_room
from tests.models import SENTENCES
from tests.runs import LORA, adapter, config, write_inputs

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),  # Ray warns of its own settings
]


def nightly(value: str) -> Any:
    """A case of `make nightly`: starting a group of workers takes half a minute."""
    return pytest.param(value, marks=pytest.mark.nightly)


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


@pytest.mark.parametrize(
    "zero", [nightly("zero0"), "zero2", nightly("zero3"), nightly("zero2_offload"), nightly("zero3_offload")]
)
def test_two_ranks_stay_equal_to_the_bit_and_equal_one_big_batch(
    inputs: Path, tmp_path: Path, alone: dict[str, Path], zero: str
) -> None:
    stage = Mntp(lora=LORA, accumulate=1 if zero == "zero0" else 2)
    train(config(inputs, tmp_path, "mntp", stage=stage, zero=zero, **TWO))
    _assert_close(tmp_path, alone["mntp"])
    assert _losses(tmp_path) == pytest.approx(_losses(alone["mntp"]), abs=2e-5)


def _losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(output / "training" / "metrics.jsonl")]


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


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["mntp", "supervised"])
def test_ranks_with_unequal_work_meet_under_zero_3(
    inputs: Path, tmp_path: Path, alone: dict[str, Path], kind: str
) -> None:
    """All weights are cut here, so each pass is everybody's; a rank has more chunks of logits, or of texts, to do."""
    settings = tmp_path / "cut.json"
    zero = {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0}
    settings.write_text(json.dumps({"zero_optimization": zero}))
    stage = Mntp(lora=LORA, loss_chunk=3) if kind == "mntp" else Supervised(lora=LORA, gradient_cache=5)
    train(config(inputs, tmp_path / "run", kind, stage=stage, zero=str(settings), workers=3))
    _assert_close(tmp_path / "run", alone[kind])


@pytest.mark.nightly
@pytest.mark.parametrize("zero", ["zero0", "zero1"])
def test_one_worker_goes_on_where_two_were(inputs: Path, tmp_path: Path, alone: dict[str, Path], zero: str) -> None:
    """GradCache on the way, and a batch that does not divide into three."""
    stage = Supervised(lora=LORA, gradient_cache=5)
    first = config(inputs, tmp_path / "first", "supervised", stage=stage, zero=zero, workers=3)
    train(first)
    _drop_checkpoint(tmp_path / "first", step=4)
    second = first.replace(
        output=str(tmp_path / "second"),
        workers=2,
        min_workers=1,
        cpus_per_worker=3,
        resume_from=str(tmp_path / "first"),
    )
    report = train(second)
    assert report["resumed_from_step"] == 2
    assert report["workers_at_end"] == 1, "only one worker of three cores fits on four"
    _assert_close(tmp_path / "second", alone["supervised"])


def _drop_checkpoint(output: Path, step: int) -> None:
    for record in list(output.rglob("rank-0.json")):
        if storage.read_json(record)["step"] == step:
            shutil.rmtree(record.parent)


@pytest.mark.nightly
def test_another_number_of_workers_is_refused_under_zero_3(inputs: Path, tmp_path: Path) -> None:
    first = config(inputs, tmp_path / "first", zero="zero3", workers=2)
    train(first)
    _drop_checkpoint(tmp_path / "first", step=4)
    second = first.replace(output=str(tmp_path / "second"), workers=1, resume_from=str(tmp_path / "first"))
    with pytest.raises(MismatchError, match="set workers=2"):
        train(second)


def test_the_encoder_is_measured_by_all_ranks_together(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sts.csv").write_text("".join(f"{text[:20]},{text[3:9]},{i}\n" for i, text in enumerate(SENTENCES[:5])))
    masked = MaskedSet(name="words", source=SourceConfig(path=str(inputs / "docs.jsonl")), max_documents=9)
    sets = (StsSet(name="sts", data=str(tmp_path / "sts.csv")), masked)
    common = {"evaluation": sets, "evaluate_every": 2}
    train(config(inputs, tmp_path / "one", **common))
    # As a person gives them: relative, to a folder that is not the workers'.
    monkeypatch.chdir(tmp_path)
    sets = (StsSet(name="sts", data="sts.csv"), masked)
    base = os.path.relpath(inputs / "base", tmp_path)
    train(config(inputs, Path("two"), start=base, zero="zero3", workers=2, evaluation=sets, evaluate_every=2))
    one, two = (
        [line for line in read_metrics(tmp_path / name / "training/metrics.jsonl") if "eval/sts/spearman" in line]
        for name in ("one", "two")
    )
    assert [line["step"] for line in two] == [0, 2, 4]
    for a, b in zip(one, two, strict=True):
        for name in ("eval/sts/spearman", "eval/words/masked_loss", "eval/words/masked_accuracy"):
            assert b[name] == pytest.approx(a[name], abs=1e-4 if "words" in name else 1e-6)


@pytest.mark.nightly
def test_all_weights_train_on_two_ranks(inputs: Path, tmp_path: Path) -> None:
    stage = Mntp(lora=None)
    for name, changes in (("one", {}), ("two", {"zero": "zero3", **TWO})):
        train(config(inputs, tmp_path / name, stage=stage, optimizer=OptimizerConfig(learning_rate=1e-3), **changes))
    one, two = (load((tmp_path / name / "model.safetensors").read_bytes()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=5e-5, rtol=1e-3)


@pytest.mark.nightly
def test_all_ranks_stop_together_when_the_loss_is_not_finite(inputs: Path, tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e30, schedule="constant")
    with pytest.raises(DivergedError, match=r"at step 1; the batch holds doc-"):
        train(config(inputs, tmp_path, optimizer=wild, zero="zero0", **TWO))


def test_more_workers_than_cores_are_refused_at_once(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="50 workers need 50 CPUs"):
        train(config(inputs, tmp_path, workers=50))


def test_a_worker_that_no_single_node_holds_is_refused() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}, {"CPU": 6.0, "GPU": 2.0}]
    require_room(Workers(count=3, cpus=2, gpu=True), nodes)
    with pytest.raises(UserError, match=r"3 nodes hold 0 of 1 workers of 8 CPUs each, .* lower cpus_per_worker"):
        require_room(Workers(count=1, cpus=8), nodes)
    # Nine cores and two GPUs are there, but not four cores beside each GPU.
    with pytest.raises(UserError, match=r"hold 2 of 3 workers of 4 CPUs and 1 GPU each"):
        require_room(Workers(count=3, cpus=4, gpu=True), nodes)
    require_room(Workers(count=3, least=2, cpus=4, gpu=True), nodes)


def test_a_cluster_that_others_fill_is_told_and_not_waited_for_for_ever(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    for name, value in (("STARTS", 1), ("SILENT_S", 2.0)):
        monkeypatch.setattr(f"rayvec.training.trainer.{name}", value)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    others = placement_group([{"CPU": 4}])
    assert others.wait(60)
    try:
        with (
            caplog.at_level("INFO", "rayvec.training"),
            pytest.raises(RayvecError, match=r"no room for 1 workers of 1 CPU each in 2 tries: .* wait_s"),
        ):
            train(config(inputs, tmp_path / "run", workers=1))
    finally:
        remove_placement_group(others)
    assert "s: the group is 1 workers of 1 CPU each, and the cluster has 0 of 4 CPUs free" in caplog.text
