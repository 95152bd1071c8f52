"""The train pipeline and job: every recipe is valid without torch, stages follow one another, mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipelines.recipes import get_recipe, recipes
from pipelines.train import TrainConfig, collapse, train, zero_settings
from rayvec.data.source_config import SourceConfig
from rayvec.errors import UserError
from rayvec.modeling.encoder import TextEncoder
from rayvec.training.pretraining import DecoderConfig
from rayvec.training.stages import Pretrain, Texts
from tests.runs import config, write_inputs

torch.set_num_threads(1)
FAMILIES = (
    "gemma3",
    "llama2_7b",
    "llama3_1_8b",
    "llama3_8b",
    "mistral_7b",
    "qwen3_0_6b",
    "qwen3_4b",
    "qwen3_8b",
    "sheared_llama_1_3b",
    "smollm3",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("name", recipes(TrainConfig))
def test_every_recipe_survives_its_own_yaml(name: str) -> None:
    recipe = get_recipe(name, TrainConfig)
    assert TrainConfig.parse(recipe.model_dump(mode="json")) == recipe


def test_the_published_families_are_there() -> None:
    names = {f"{family}.{stage}" for family in FAMILIES for stage in ("mntp", "simcse", "supervised")}
    names |= {f"tiny.{stage}" for stage in ("pretrain", "mntp", "simcse", "supervised")}
    assert names <= recipes(TrainConfig).keys()


def test_the_published_numbers() -> None:
    mntp = get_recipe("mistral_7b.mntp", TrainConfig)
    assert (mntp.stage.kind, mntp.stage.probability, mntp.stage.masking) == ("mntp", 0.8, "all")  # type: ignore[union-attr]
    supervised = get_recipe("llama3_8b.supervised", TrainConfig)
    assert (supervised.batch_size, supervised.optimizer.warmup_steps) == (512, 300)
    assert len(supervised.data.sets) == 14  # type: ignore[union-attr]


def test_stages_follow_one_another(inputs: Path, tmp_path: Path) -> None:
    folders = {kind: tmp_path / kind for kind in ("pretrain", "mntp", "simcse", "supervised")}
    decoder = DecoderConfig(
        vocab_size=512, hidden_size=32, intermediate_size=48, layers=1, heads=2, key_value_heads=1, context=64
    )
    data = Texts(source=SourceConfig(path=str(inputs / "docs.jsonl")))
    train(config(inputs, folders["pretrain"], "pretrain", stage=Pretrain(decoder=decoder), data=data, start=""))
    start = folders["pretrain"]
    for kind in ("mntp", "simcse", "supervised"):
        report = train(config(inputs, folders[kind], kind, start=str(start), steps=2))
        assert report["stage"] == kind
        start = folders[kind]
    encoder = TextEncoder.load(start)
    assert [adapter.stage for adapter in encoder.folder.manifest.adapters] == ["mntp", "simcse", "supervised"]
    assert encoder.encode(["a text", "another one"]).shape == (2, 32)
    for folder in folders.values():
        extras = {path.name for path in (folder / "training").iterdir()}
        assert {"config.yaml", "metrics.jsonl", "curves.png", "tensorboard", "checkpoints"} <= extras
        assert (folder / "report.json").exists()


def test_a_finished_run_is_not_done_again(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "run", steps=1)
    first = train(run)
    assert "note" not in first
    assert train(run.replace(log_every=7))["note"] == "was done already"


def test_mistakes_are_one_line(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="output is required"):
        train(config(inputs, tmp_path).replace(output=""))
    with pytest.raises(UserError, match="start is required"):
        train(config(inputs, tmp_path, start=""))
    with pytest.raises(UserError, match=r"neither one of zero0, zero1, .*, zero3_offload nor a JSON file"):
        zero_settings("zero9")
    with pytest.raises(UserError, match=r"no model at .*nothing"):
        train(config(inputs, tmp_path / "a", start=str(tmp_path / "nothing")))
    missing = Texts(source=SourceConfig(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match=r"none\.jsonl"):
        train(config(inputs, tmp_path / "b", data=missing))


def test_a_collapsed_simcse_is_told(inputs: Path, tmp_path: Path) -> None:
    run = config(inputs, tmp_path, "simcse", batch_size=64)
    assert collapse(run, [{"step": 1, "loss": 2.0}]) is None
    assert "raise stage.attention_dropout" in str(collapse(run, [{"step": 1, "loss": 1e-3}]))


def test_the_job_takes_overrides() -> None:
    from jobs.train import command

    arguments = ["--recipe", "tiny.simcse", "--set", "stage.scale=10", "--set", "output=/x", "--dry-run"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "scale: 10.0" in result.output and "output: /x" in result.output


@pytest.mark.parametrize(
    ("kind", "message"), [("mntp", "there is no text to train on"), ("supervised", "fewer than batch_size 50")]
)
def test_settings_without_a_batch_die_early_and_do_not_stand_in_the_way(
    inputs: Path, tmp_path: Path, kind: str, message: str
) -> None:
    run = config(inputs, tmp_path / "run", kind)
    short = {"data": Texts(source=SourceConfig(path=str(inputs / "docs.jsonl")), min_characters=10**6)}
    wrong = run.replace(
        **(short if kind == "mntp" else {"batch_size": 50}), workers=2
    )  # Ray would take longer to start
    with pytest.raises(UserError, match=message):
        train(wrong)
    assert train(run)["steps"] == 4
