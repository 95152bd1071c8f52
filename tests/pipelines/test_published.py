"""The published runs: what holds for every family, and what each has of its own (LLM2Vec, appendix D)."""

from __future__ import annotations

import importlib

import pytest

from pipelines.embed import EmbedConfig
from pipelines.index import IndexConfig
from pipelines.published import Family
from pipelines.recipes import get_recipe, recipes
from pipelines.train import TrainConfig
from rayvec.modeling.prompts import template_for
from rayvec.training.shapes import PUBLISHED

#: Masked share, how, attention window, SimCSE's batch, chat format, dimensions in the index.
FAMILIES = {
    "gemma3": (0.2, "bert", None, 128, "gemma", None),
    "llama2_7b": (0.2, "bert", None, 128, "inst", 1024),
    "llama3_1_8b": (0.2, "bert", None, 128, "llama3", 1024),
    "llama3_8b": (0.2, "bert", None, 128, "llama3", 1024),
    "mistral_7b": (0.8, "all", "full", 128, "inst", 1024),
    "qwen3_0_6b": (0.2, "bert", None, 128, "none", None),
    "qwen3_4b": (0.2, "bert", None, 128, "none", 1024),
    "qwen3_8b": (0.2, "bert", None, 128, "none", 1024),
    "sheared_llama_1_3b": (0.2, "bert", None, 32, "none", 1024),
    "smollm3": (0.2, "bert", None, 128, "none", 1024),
}


def test_these_are_all_families() -> None:
    found = {name.partition(".")[0] for name in recipes(TrainConfig)}
    assert {name for name in found if hasattr(_module(name), "FAMILY")} == FAMILIES.keys()


def _module(name: str) -> object:
    return importlib.import_module(f"pipelines.recipes.{name}")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_each_family_has_of_its_own(name: str) -> None:
    probability, masking, window, batch, template, dimensions = FAMILIES[name]
    mntp, simcse = (get_recipe(f"{name}.{stage}", TrainConfig) for stage in ("mntp", "simcse"))
    assert (mntp.stage.probability, mntp.stage.masking, mntp.attention_window) == (probability, masking, window)  # type: ignore[union-attr]
    assert simcse.batch_size == batch
    assert template_for(mntp.start) == template
    assert get_recipe(f"{name}.index", IndexConfig).dimensions == dimensions
    assert get_recipe(f"{name}.embed", EmbedConfig).encoder == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_stage_names_its_base_and_the_base_has_a_shape(name: str) -> None:
    stages = [get_recipe(f"{name}.{stage}", TrainConfig) for stage in ("mntp", "simcse", "supervised")]
    (base,) = {stage.base for stage in stages}
    assert [stage.start for stage in stages] == [base, "", ""]
    assert (PUBLISHED / f"{base.replace('/', '--')}.json").is_file()


def test_what_all_families_share() -> None:
    family = Family("a base")
    mntp, simcse, supervised = family.mntp(), family.simcse(), family.supervised()
    rows = [(c.optimizer.learning_rate, c.optimizer.warmup_steps, c.max_length, c.steps) for c in (mntp, simcse)]
    assert rows == [(5e-5, 0, 512, 1000), (3e-5, 0, 128, 1000)]
    assert (mntp.batch_size, supervised.batch_size, supervised.workers) == (32, 512, 8)
    assert (supervised.optimizer.learning_rate, supervised.optimizer.warmup_steps) == (2e-4, 300)
    assert (simcse.stage.scale, simcse.stage.attention_dropout) == (20.0, 0.3)  # type: ignore[union-attr]
    assert (supervised.stage.scale, supervised.stage.hard_negatives) == (50.0, 1)  # type: ignore[union-attr]
    for config in (mntp, simcse, supervised):
        lora = config.stage.lora  # type: ignore[union-attr]
        assert lora is not None
        assert (lora.rank, lora.alpha, lora.dropout, config.gradient_checkpointing) == (16, 32, 0.05, True)
    assert len(supervised.data.sets) == 14  # type: ignore[union-attr]
    # The published files are drawn by the paper's shares already.
    assert {one.weight for one in supervised.data.sets} == {1.0}  # type: ignore[union-attr]
    assert [one.name for one in supervised.data.sets if one.both_sides] == ["quora_duplicates"]  # type: ignore[union-attr]
    query = supervised.prompts.instructions["query"]
    assert {one.name for one in supervised.data.sets if query in one.instructions} == {"msmarco_passage"}  # type: ignore[union-attr]
