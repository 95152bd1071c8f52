"""The train job's --dry-run: every recipe's YAML, and after it what the run would need, without network, Ray or GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from jobs.train import command
from pipelines.plan import plan, ways
from pipelines.recipes import get_recipe, recipes
from pipelines.train import TrainConfig
from rayvec.errors import UserError
from rayvec.training.stages import Pretrain
from tests.models import save_model, tiny_llama

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]

#: Parameters of each family's base, as published; LoRA's of rank 16 on its seven projections, by hand.
COUNTS = {
    "gemma3": (999_885_952, 26 * 16 * (2 * (1152 + 1024) + 2 * (1152 + 256) + 3 * (1152 + 6912))),
    "llama2_7b": (6_738_415_616, 32 * 16 * (4 * 8192 + 3 * (4096 + 11008))),
    "llama3_1_8b": (8_030_261_248, 41_943_040),
    "llama3_8b": (8_030_261_248, 41_943_040),
    "mistral_7b": (7_241_732_096, 41_943_040),
    "qwen3_0_6b": (596_049_920, 28 * 16 * (2 * (1024 + 2048) + 2 * (1024 + 1024) + 3 * (1024 + 3072))),
    "qwen3_4b": (4_022_468_096, 33_030_144),
    "qwen3_8b": (8_190_735_360, 36 * 16 * (2 * 8192 + 2 * 5120 + 3 * (4096 + 12288))),
    "sheared_llama_1_3b": (1_345_423_360, 24 * 16 * (4 * 4096 + 3 * (2048 + 5504))),
    "smollm3": (3_075_098_624, 36 * 16 * (2 * 4096 + 2 * (2048 + 512) + 3 * (2048 + 11008))),
    "tiny": (6_524_160, 6 * 16 * (2 * 512 + 2 * (256 + 128) + 3 * (256 + 704))),
}


def dry_run(*arguments: str) -> str:
    return CliRunner().invoke(command, [*arguments, "--dry-run"], catch_exceptions=False).stdout


def test_every_family_is_counted() -> None:
    assert {name.partition(".")[0] for name in recipes(TrainConfig)} == COUNTS.keys()


@pytest.mark.parametrize("name", recipes(TrainConfig))
def test_every_recipe_dry_runs_with_its_real_shape(name: str, tmp_path: Path) -> None:
    family = name.partition(".")[0]
    told = dry_run("--recipe", name)
    (tmp_path / "run.yaml").write_text(told, encoding="utf-8")
    assert TrainConfig.from_yaml(tmp_path / "run.yaml") == get_recipe(name, TrainConfig)
    published, lora = COUNTS[family]
    config = get_recipe(name, TrainConfig)
    # The counts are those of rank 16, and go with the rank.
    settings = None if isinstance(config.stage, Pretrain) else config.stage.lora
    trained = published if settings is None else lora * settings.rank // 16
    assert f"{published:,} parameters" in told
    assert f"# trained  {trained:,} of" in told
    rows = [line.split()[1] for line in told.splitlines() if line.startswith(("# zero", "# plain"))]
    assert rows == ["zero0", "zero1", "zero2", "zero3", "zero3,"]
    assert "?" not in told.partition("# model")[2]


def test_what_was_dry_run_runs_again_as_a_configuration(tmp_path: Path) -> None:
    first = dry_run("--recipe", "tiny.mntp", "--set", "steps=7")
    (tmp_path / "run.yaml").write_text(first, encoding="utf-8")
    assert dry_run("--config", str(tmp_path / "run.yaml")) == first
    assert yaml.safe_load(first)["steps"] == 7


def test_a_dry_run_needs_no_ray() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from jobs.train import command;"
        "r = CliRunner().invoke(command, ['--recipe', 'llama3_8b.mntp', '--dry-run']); assert r.exit_code == 0;"
        "assert '8,030,261,248' in r.output; print([m for m in ('ray', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def planned(**changes: object) -> str:
    return "\n".join(plan(get_recipe("qwen3_0_6b.simcse", TrainConfig).replace(**changes)))


def test_a_start_that_is_there_is_planned_as_it_is(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    assert "hidden size 32," in planned(start=str(base))
    assert "(its folder): llama, 2 layers" in planned(start=str(base))


def test_a_start_that_is_yet_to_be_made_is_planned_by_its_base() -> None:
    assert "Qwen/Qwen3-0.6B (as published)" in planned(start="runs/mntp")


def test_an_unknown_shape_is_one_line() -> None:
    assert planned(start="somebody/unknown-7B", base="") == (
        "plan     the shape of somebody/unknown-7B is not known here; memory is not estimated"
    )
    assert planned(base="").startswith("plan     the shape of start is not known here")


def test_what_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    lines = planned(start=str(tiny_llama(tmp_path / "base")), stage={"kind": "simcse", "lora": {"targets": ["none"]}})
    assert lines.startswith("plan     LoRA finds no layer to adapt")
    assert lines.count("\n") == 0


def test_activations_that_depend_on_the_data_are_question_marks(tmp_path: Path) -> None:
    start = str(save_model("qwen3_moe", tmp_path / "base"))  # routes tokens by what they hold
    table = planned(start=start, dtype="float32").splitlines()[5:]
    assert [row.split()[-2:] for row in table[:4]] == [["?", "?"]] * 4


def test_ways_of_sharing_memory_out(tmp_path: Path) -> None:
    config = get_recipe("llama3_8b.mntp", TrainConfig)
    schemes, chosen = ways(config)
    assert (list(schemes), chosen) == (["zero0", "zero1", "zero2", "zero3", "zero3, CPU offload"], "zero1")
    assert next(iter(ways(config.replace(workers=0))[0])) == ways(config.replace(engine="plain"))[1] == "plain"
    mine = tmp_path / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": 2}}')
    schemes, chosen = ways(config.replace(zero=str(mine)))
    assert schemes[chosen] == {"zero_optimization": {"stage": 2}}
    with pytest.raises(UserError, match="zero = 'zero9'"):
        ways(config.replace(zero="zero9"))
