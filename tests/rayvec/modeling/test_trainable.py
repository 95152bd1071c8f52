from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rayvec.errors import UserError
from rayvec.modeling.adapters import LoraSettings
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.trainable import (
    TrainableEncoder,
    create_decoder,
    open_decoder,
    open_for_training,
    save_decoder,
)
from tests.models import SENTENCES, family_config, tiny_llama
from tests.rayvec.modeling.test_adapters import shake

LORA = LoraSettings(rank=4, dropout=0.0)


def packed(encoder: TrainableEncoder) -> PackedBatch:
    return PackedBatch.from_tokens(encoder.tokenize(SENTENCES))


def test_a_few_steps_of_masked_prediction_lower_the_loss_and_are_saved(llama: Path, tmp_path: Path) -> None:
    encoder = open_for_training(llama, lora=LORA, head=True)
    batch = packed(encoder)
    # One chosen token a text; it is predicted from the state before it, as the decoder always did.
    targets = batch.cu_seqlens[:-1].long() + 3
    optimizer = torch.optim.AdamW([p for p in encoder.backbone.parameters() if p.requires_grad], lr=1e-2)
    encoder.backbone.train()
    losses = []
    for _ in range(8):
        logits = encoder.backbone.logits_at(encoder.backbone(batch), targets - 1)
        loss = cross_entropy(logits, batch.input_ids_T[targets])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    encoder.backbone.eval()
    with torch.inference_mode():
        expected = encoder.vectors(batch, normalize=True).numpy()
    encoder.save(tmp_path / "mntp", stage="mntp", training={"steps": 8})
    assert np.abs(TextEncoder.load(tmp_path / "mntp").encode(SENTENCES) - expected).max() <= 1e-5


def test_two_passes_differ_by_attention_dropout(llama: Path) -> None:
    encoder = open_for_training(llama, lora=LORA, attention_dropout=0.3)
    encoder.backbone.train()
    batch = packed(encoder)
    with torch.no_grad():
        first, second = encoder.vectors(batch, normalize=True), encoder.vectors(batch, normalize=True)
    cosines = (first * second).sum(1)
    assert float(cosines.min()) > 0.0 and float(cosines.max()) < 0.9999


def test_gradient_checkpointing_changes_no_gradient(llama: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = open_for_training(llama, lora=LORA, gradient_checkpointing=checkpointing)
        shake(encoder.backbone, 0)
        torch.manual_seed(0)
        for name, parameter in encoder.backbone.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        encoder.backbone.train()
        encoder.vectors(packed(encoder))[:, :8].sum().backward()
        gradients.append([p.grad for p in encoder.backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_the_manifest_tells_the_stages(llama: Path, tmp_path: Path) -> None:
    open_for_training(llama, lora=LORA).save(tmp_path / "a", stage="mntp", training={"steps": 8})
    open_for_training(tmp_path / "a", lora=LORA).save(tmp_path / "b", stage="simcse", training={"steps": 3})
    manifest = TextEncoder.load(tmp_path / "b").folder.manifest
    assert [adapter.stage for adapter in manifest.adapters] == ["mntp", "simcse"]
    assert [entry["steps"] for entry in manifest.training] == [8, 3]


def test_files_of_the_run_beside_the_encoder_are_left_alone(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    open_for_training(llama, lora=LORA).save(tmp_path, stage="mntp")
    (tmp_path / "config.yaml").write_text("steps: 2\n")
    assert (tmp_path / "training" / "metrics.jsonl").exists()
    assert TextEncoder.load(tmp_path).dim == 32


def test_continue_last_trains_the_same_adapter(llama: Path, tmp_path: Path) -> None:
    first = open_for_training(llama, lora=LORA)
    shake(first.backbone, 0)
    first.save(tmp_path / "a", stage="simcse")
    second = open_for_training(tmp_path / "a", lora=LORA, continue_last=True)
    second.save(tmp_path / "b", stage="simcse")
    assert TextEncoder.load(tmp_path / "b").fingerprint == TextEncoder.load(tmp_path / "a").fingerprint
    assert any(p.requires_grad for p in second.backbone.parameters())


def test_continue_last_without_an_adapter_is_the_users_mistake(llama: Path) -> None:
    with pytest.raises(UserError, match="continue_last"):
        open_for_training(llama, lora=LORA, continue_last=True)


def test_settings_given_at_a_stage_go_into_the_manifest(llama: Path, tmp_path: Path) -> None:
    open_for_training(llama, lora=LORA, pooling="weighted_mean", max_length=64).save(tmp_path, stage="mntp")
    encoder = TextEncoder.load(tmp_path)
    assert (encoder.fingerprint.pooling, encoder.max_length) == ("weighted_mean", 64)


def test_last_token_pooling_brings_its_token_at_a_stage_as_everywhere(llama: Path, tmp_path: Path) -> None:
    open_for_training(llama, lora=LORA, pooling="last_token").save(tmp_path / "a", stage="mntp")
    made = TextEncoder.load(tmp_path / "a").folder
    assert made.manifest.prompts.append_eos
    assert made.manifest.prompts == TextEncoder.from_decoder(llama, pooling="last_token").folder.manifest.prompts
    open_for_training(tmp_path / "a", lora=LORA, pooling="mean").save(tmp_path / "b", stage="simcse")
    assert not TextEncoder.load(tmp_path / "b").folder.manifest.prompts.append_eos


def test_a_fresh_decoder_is_saved_as_a_plain_transformers_folder(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    backbone = create_decoder(family_config("llama"))
    save_decoder(backbone, AutoTokenizer.from_pretrained(llama), tmp_path)
    assert "is_causal" not in (tmp_path / "config.json").read_text()
    batch = PackedBatch.from_tokens(TextEncoder.load(tmp_path).tokenize(SENTENCES[:1]))
    own = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = own(batch.input_ids_T[None]).logits[0]
        found = backbone.logits_at(backbone(batch), torch.arange(len(expected)))
    assert (found - expected).abs().max() <= 1e-4


def test_a_saved_decoder_opens_to_be_pretrained_further(llama: Path) -> None:
    backbone = open_decoder(llama)
    assert backbone.causal and backbone.head is not None
    assert all(p.requires_grad for p in backbone.parameters())


def test_without_lora_all_weights_train_and_the_folder_is_whole(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    encoder = open_for_training(base, lora=None, head=True)
    assert all(parameter.requires_grad for parameter in encoder.backbone.decoder.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.backbone.head.parameters())  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in encoder.backbone.decoder.parameters():
            parameter.mul_(1.1)
    (tmp_path / "made" / "training").mkdir(parents=True)
    encoder.save(tmp_path / "made", stage="mntp", training={"steps": 1})
    shutil.rmtree(base)
    made = TextEncoder.load(tmp_path / "made")
    batch = packed(encoder)
    encoder.backbone.eval()
    expected = encoder.vectors(batch, normalize=True).detach().numpy()
    np.testing.assert_allclose(made.encode(SENTENCES), expected, atol=1e-6)
    assert [record.stage for record in made.folder.manifest.adapters] == ["mntp"]
    assert (tmp_path / "made" / "training").is_dir()


def test_a_whole_model_is_a_base_for_the_next_stage(tmp_path: Path) -> None:
    open_for_training(tiny_llama(tmp_path / "base"), lora=None).save(tmp_path / "full", stage="mntp")
    second = open_for_training(tmp_path / "full", lora=LORA, pooling="weighted_mean")
    with torch.no_grad():
        for name, parameter in second.backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    second.save(tmp_path / "second", stage="simcse")
    loaded = TextEncoder.load(tmp_path / "second")
    assert loaded.folder.manifest.base == str(tmp_path / "full")
    assert [record.stage for record in loaded.folder.manifest.adapters] == ["simcse"]
    second.backbone.eval()
    expected = second.vectors(packed(second), normalize=True).detach().numpy()
    np.testing.assert_allclose(loaded.encode(SENTENCES), expected, atol=1e-5)
