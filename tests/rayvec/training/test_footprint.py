"""Footprint: parameter counts as published, activations by hand and as autograd really keeps them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from rayvec.modeling.adapters import LoraSettings, attach
from rayvec.modeling.backbone import Backbone
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.tokens import TokenBatch
from rayvec.training.footprint import PROBE_TOKENS, Footprint, _Kept, footprint
from rayvec.training.shapes import PUBLISHED, find_shape
from rayvec.training.stages import Mntp, Pairs, PairSet, Pretrain, Simcse, Supervised, TrainingConfig
from tests.models import family_config

torch.set_num_threads(1)
MNTP = Mntp(lora=LoraSettings(dropout=0.0))
PAIRS = Pairs(sets=(PairSet(name="pairs", path="pairs.jsonl"),))

#: As the models' cards, safetensors headers or the reference's printouts count them; tied weights once.
PUBLISHED_COUNTS = {
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-3-1b-it": 999_885_952,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "princeton-nlp/Sheared-LLaMA-1.3B": 1_345_423_360,
}
LLAMA3 = "meta-llama/Meta-Llama-3-8B-Instruct"


@cache
def measured(name: str, stage: Any = MNTP, *, dtype: torch.dtype = torch.bfloat16, mixed: bool = True) -> Footprint:
    shape = find_shape(name)
    assert shape is not None
    data = {"data": PAIRS} if isinstance(stage, Supervised) else {}
    return footprint(TrainingConfig(stage=stage, **data), shape.config, dtype=dtype, mixed=mixed)


def test_every_published_shape_is_counted() -> None:
    assert {path.stem.replace("--", "/") for path in PUBLISHED.glob("*.json")} == PUBLISHED_COUNTS.keys()


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    from transformers import AutoModelForCausalLM

    shape = find_shape(name)
    assert shape is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_COUNTS[name]


def test_counts_of_a_stage() -> None:
    mntp = measured(LLAMA3)
    # rank 16: q and o 4096 + 4096, k and v 4096 + 1024, gate, up and down 4096 + 14336; 32 layers.
    lora = 16 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    assert (mntp.published, mntp.trained, mntp.loaded) == (8_030_261_248, lora, 8_030_261_248 + lora)
    assert (mntp.layers, mntp.hidden, mntp.vocabulary) == (32, 4096, 128_256)
    assert (mntp.loaded_bytes, mntp.trained_bytes) == (2 * mntp.loaded, 2 * lora)


def test_contrastive_stages_load_no_head() -> None:
    for stage in (Simcse(), Supervised()):
        counts = measured(LLAMA3, stage)
        assert counts.loaded - counts.trained == 8_030_261_248 - 128_256 * 4096


def test_all_weights_train_without_a_lora_but_for_the_head() -> None:
    assert measured(LLAMA3, Mntp(lora=None)).trained == 8_030_261_248 - 128_256 * 4096
    tied = measured("Qwen/Qwen3-0.6B", Mntp(lora=None))
    assert tied.trained == tied.loaded == 596_049_920


def test_without_deepspeed_a_lora_stays_in_fp32() -> None:
    counts = measured("Qwen/Qwen3-0.6B", mixed=False)
    assert counts.trained_bytes == 4 * counts.trained
    assert counts.loaded_bytes - counts.trained_bytes == 2 * (counts.loaded - counts.trained)


def test_pretraining_needs_no_shape() -> None:
    counts = footprint(TrainingConfig(stage=Pretrain()), None, dtype=torch.bfloat16, mixed=True)
    assert counts.published == counts.loaded == counts.trained == 6_524_160  # the embedded decoder's


def test_activations_of_a_llama_layer_by_hand() -> None:
    activations = measured(LLAMA3).activations
    assert activations is not None
    # Bytes a token, bf16. Two norms: fp32 states, their scale, and what comes out (LoRA's input). Attention: q, k, v,
    # out and a number a head. MLP: gate, its activation, up, their product. Seven LoRA states of rank 16.
    norms = 2 * (4 * 4096 + 4 + 2 * 4096)
    attention = 2 * (4096 + 1024 + 1024 + 4096) + 4 * 32
    assert activations.layer == norms + attention + 4 * 2 * 14336 + 7 * 2 * 16
    assert activations.widest == 2 * 14336
    # All the layers' inputs; outside of them the last norm, the embeddings' input and rotary tables.
    outside = activations.kept_checkpointed - 32 * 2 * 4096
    assert 4 * 4096 < outside < 4 * 4096 + 2 * 4096 + 2000
    # The first layer's norm has nothing to train before it.
    assert activations.kept == pytest.approx(32 * activations.layer + outside, rel=0.005)


def test_dropout_keeps_a_copy_and_a_byte_of_each_adapted_input() -> None:
    plain, dropping = measured(LLAMA3).activations, measured(LLAMA3, Mntp()).activations
    assert plain is not None
    assert dropping is not None
    shared = 2 * 4096 + 2 * 4096 + 2 * 14336  # three inputs, which LoRA needs no more: it takes the copies
    assert dropping.layer - plain.layer == 3 * (6 * 4096 + 14336) - shared


def test_attention_with_dropout_repeats_keys_and_values() -> None:
    plain = measured(LLAMA3, Simcse(attention_dropout=None)).activations
    dropping = measured(LLAMA3, Simcse(attention_dropout=0.3)).activations
    assert plain is not None
    assert dropping is not None
    assert dropping.layer - plain.layer == 2 * 2 * (4096 - 1024)


def test_what_depends_on_the_data_is_not_told() -> None:
    config = TrainingConfig(stage=MNTP)
    assert footprint(config, family_config("qwen3_moe"), dtype=torch.float32, mixed=False).activations is None


def test_a_real_pass_keeps_as_much() -> None:
    config = family_config("llama")
    config.num_key_value_heads = config.num_attention_heads  # the CPU's attention repeats fewer ones
    backbone = Backbone.create(config, attention="bidirectional", head=True)
    attach(backbone, MNTP.lora)  # type: ignore[arg-type]
    backbone.train()
    length = config.max_position_embeddings
    packed = PackedBatch.from_tokens(TokenBatch.from_rows([range(length)] * (PROBE_TOKENS // length)))
    kept = _Kept(backbone)
    with torch.autograd.graph.saved_tensors_hooks(kept.count, lambda tensor: tensor):
        backbone(packed)
    estimated = footprint(TrainingConfig(stage=MNTP), config, dtype=torch.float32, mixed=False).activations
    assert estimated is not None
    assert kept.bytes == pytest.approx(PROBE_TOKENS * estimated.kept, rel=0.03)
