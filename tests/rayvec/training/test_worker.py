"""One worker alone: the run resumed equals the run left alone to the bit; what goes wrong is told, with its step."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train import TrainConfig, train
from rayvec import storage
from rayvec.errors import MismatchError, RayvecError, UserError, VerificationError
from rayvec.evaluation.sts import correlation, cosines, read_pairs
from rayvec.modeling.encoder import TextEncoder
from rayvec.training.curves import read_metrics
from rayvec.training.job import LocalLink
from rayvec.training.loop import DivergedError, Progress
from rayvec.training.memory import memory_advice
from rayvec.training.metrics import GAUGES
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import Mntp, Simcse, StsSet
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


def test_the_numbers_of_each_line_are_handed_on(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Progress] = []
    monkeypatch.setattr(LocalLink, "logged", lambda _, progress: handed.append(progress))
    train(config(inputs, tmp_path, log_every=2))
    lines = read_metrics(tmp_path / "training" / "metrics.jsonl")
    assert [(one.step, one.metrics["loss"]) for one in handed] == [(line["step"], line["loss"]) for line in lines]
    assert all(GAUGES.keys() - {"step", "tokens_per_second"} <= one.metrics.keys() for one in handed)


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


def test_a_run_goes_on_from_a_checkpoint_that_lies_elsewhere(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "run")
    train(run)
    elsewhere = tmp_path / "kept"
    shutil.copytree(tmp_path / "run/training/checkpoints/step-00000002", elsewhere)
    other = run.replace(output=str(tmp_path / "other"), resume_from=str(elsewhere))
    assert train(other)["resumed_from_step"] == 2
    assert adapter(tmp_path / "other") == adapter(tmp_path / "run")


def test_a_damaged_checkpoint_to_start_from_is_refused(inputs: Path, tmp_path: Path) -> None:
    train(config(inputs, tmp_path / "run"))
    kept = tmp_path / "run/training/checkpoints/step-00000004"
    (kept / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(VerificationError, match="holds no whole checkpoint"):
        train(config(inputs, tmp_path / "other", resume_from=str(kept)))


def test_the_encoder_is_measured_while_it_trains(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "sts.csv").write_text(
        "".join(f"{a},{b},{i}\n" for i, (a, b) in enumerate(itertools.pairwise("abcdefg")))
    )
    sets = (StsSet(name="letters", data=str(tmp_path / "sts.csv")),)
    plain, measured = config(inputs, tmp_path / "plain"), config(inputs, tmp_path / "measured")
    train(plain)
    report = train(measured.replace(evaluation=sets, evaluate_every=3))
    assert adapter(tmp_path / "measured") == adapter(tmp_path / "plain"), "measuring changed the training"
    lines = read_metrics(tmp_path / "measured/training/metrics.jsonl")
    values = {line["step"]: line["eval/letters/spearman"] for line in lines if "eval/letters/spearman" in line}
    assert list(values) == [0, 3, 4]
    encoder = TextEncoder.load(tmp_path / "measured")
    pairs = read_pairs(str(tmp_path / "sts.csv"))
    cosine = cosines(encoder.encode(pairs.first), encoder.encode(pairs.second))
    assert values[4] == pytest.approx(correlation(cosine, pairs.scores), abs=1e-6)
    assert report["evaluation"] == {"eval/letters/spearman": [round(values[0], 4), round(values[4], 4)]}


def test_an_evaluation_set_that_is_not_there_is_found_out_first(inputs: Path, tmp_path: Path) -> None:
    sets = (StsSet(name="sts", data=str(tmp_path / "missing.csv")),)
    with pytest.raises(UserError, match=r"missing\.csv does not exist"):
        train(config(inputs, tmp_path / "run", evaluation=sets))
    assert not (tmp_path / "run/training/data").exists()


def test_all_weights_train_and_resume_to_the_bit(inputs: Path, tmp_path: Path) -> None:
    stage = Mntp(lora=None, accumulate=2)
    run = config(inputs, tmp_path / "run", stage=stage)
    train(run)
    whole = (tmp_path / "run/model.safetensors").read_bytes()
    for name in ("report.json", "rayvec.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run/training/checkpoints/step-00000004")
    assert train(run)["resumed_from_step"] == 2
    assert (tmp_path / "run/model.safetensors").read_bytes() == whole
    assert report_of(tmp_path / "run")["trainable"] > 0.5 * report_of(tmp_path / "run")["parameters"]
    assert TextEncoder.load(tmp_path / "run").folder.manifest.merged


def report_of(folder: Path) -> dict[str, Any]:
    return storage.read_json(folder / "report.json")


def test_all_weights_in_halves_without_deepspeed_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype=bfloat16 trains all weights with DeepSpeed alone"):
        train(config(inputs, tmp_path / "run", stage=Mntp(lora=None), dtype="bfloat16"))


@pytest.mark.parametrize(
    ("kind", "changes", "advice"),
    [
        ("mntp", {}, "set stage.accumulate to 2, lower max_length (now 32), or set gradient_checkpointing=true"),
        (
            "simcse",
            {},
            "set stage.gradient_cache (say 16), lower max_length (now 32), or set gradient_checkpointing=true",
        ),
        (
            "pretrain",
            {"gradient_checkpointing": True},
            "lower batch_size (now 8), lower max_length (now 32), or use zero",
        ),
    ],
)
def test_lack_of_memory_names_three_settings(tmp_path: Path, kind: str, changes: dict[str, Any], advice: str) -> None:
    assert advice in memory_advice(config(tmp_path, tmp_path, kind, **changes))


def test_lack_of_memory_in_this_process_is_one_line(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: Any) -> torch.Tensor:
        return torch.empty(1 << 50)  # a petabyte: torch's own allocator refuses

    monkeypatch.setattr("rayvec.training.modules.MntpModule.forward", greedy)
    with pytest.raises(RayvecError, match=r"out of memory: set stage.accumulate to 2, .*can't allocate memory"):
        train(config(inputs, tmp_path / "run"))
