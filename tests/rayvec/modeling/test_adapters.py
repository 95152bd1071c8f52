from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.modeling import adapters
from rayvec.modeling.adapters import LoraSettings
from rayvec.modeling.backbone import Backbone
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.trainable import open_for_training
from tests.models import SENTENCES, family_config, save_model, tiny_llama

PACKED = PackedBatch.from_tokens(TokenBatch.from_rows([np.arange(9, 20), np.arange(30, 34)]))


def shake(backbone: Backbone, seed: int) -> None:
    """Give a fresh LoRA (whose B is zero) something to say."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.decoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2, generator=random)


def stage(start: Path, output: Path, name: str, seed: int) -> Path:
    """What a training stage does to a folder, without the training."""
    encoder = open_for_training(start, lora=LoraSettings(rank=4, alpha=8))
    shake(encoder.backbone, seed)
    encoder.save(output, stage=name)
    return output


@pytest.fixture(scope="module")
def mntp(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(llama, tmp_path_factory.mktemp("mntp") / "encoder", "mntp", seed=1)


@pytest.fixture(scope="module")
def simcse(mntp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(mntp, tmp_path_factory.mktemp("simcse") / "encoder", "simcse", seed=2)


def test_merging_changes_no_state(llama: Path) -> None:
    backbone = Backbone.load(llama)
    adapters.attach(backbone, LoraSettings(rank=4))
    shake(backbone, 0)
    backbone.eval()
    with torch.inference_mode():
        unmerged = backbone(PACKED)
    adapters.merge(backbone)
    with torch.inference_mode():
        assert torch.allclose(backbone(PACKED), unmerged, atol=1e-4)


def test_only_the_adapter_trains(llama: Path) -> None:
    backbone = Backbone.load(llama, head=True)
    adapters.attach(backbone, LoraSettings(rank=4))
    assert all("lora_" in name for name, p in backbone.named_parameters() if p.requires_grad)


def test_llm2vecs_seven_projections_are_adapted(llama: Path) -> None:
    backbone = Backbone.load(llama)
    adapters.attach(backbone, LoraSettings())
    names = [name for name, _ in backbone.named_parameters() if "lora_A" in name]
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name in names}
    assert adapted == set(adapters.PROJECTIONS)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}),  # experts are no linear layers
        ("qwen3", {*adapters.PROJECTIONS}),
        ("gemma3", {*adapters.PROJECTIONS}),
    ],
)
def test_every_linear_layer_of_a_block_is_adapted_or_llm2vecs_seven(family: str, expected: set[str]) -> None:
    _check_adapted(family_config(family), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Glm4Config", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("OPTConfig", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
        ("PhiConfig", {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}),
    ],
)
def test_what_some_call_otherwise_is_not_left_out(name: str, expected: set[str]) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"ffn_dim": 48, "word_embed_proj_dim": 32} if name == "OPTConfig" else {}
    _check_adapted(getattr(transformers, name)(vocab_size=512, pad_token_id=0, **sizes, **more), expected)


def _check_adapted(config: Any, expected: set[str]) -> None:
    with torch.device("meta"):
        backbone = Backbone(transformers.AutoModel.from_config(config))
        adapters.attach(backbone, LoraSettings(rank=4))
    names = [name for name, _ in backbone.named_parameters() if "lora_A" in name]
    assert {name.split(".lora_A")[0].rpartition(".")[2] for name in names} == expected
    assert adapters.adapted(backbone) == sorted(expected)


@pytest.mark.parametrize("family", ["gpt_neox", "bert", "phi3"])
def test_families_with_other_names_are_adapted_too(family: str, tmp_path: Path) -> None:
    backbone = Backbone.load(save_model(family, tmp_path))
    adapters.attach(backbone, LoraSettings(rank=4))
    shake(backbone, 0)
    backbone(PACKED)[:, :8].square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.parameters())


def test_targets_that_are_not_there_are_the_users_mistake(llama: Path) -> None:
    with pytest.raises(UserError, match="set targets"):
        adapters.attach(Backbone.load(llama), LoraSettings(targets=("query",)))


def test_adapters_load_in_order(simcse: Path, mntp: Path, llama: Path) -> None:
    folders = [simcse / "adapters" / "1-mntp", simcse / "adapters" / "2-simcse"]
    by_hand = TextEncoder.from_decoder(llama, adapters=folders)
    assert np.abs(TextEncoder.load(simcse).encode(SENTENCES) - by_hand.encode(SENTENCES)).max() <= 1e-6
    assert not np.allclose(by_hand.encode(SENTENCES), TextEncoder.load(mntp).encode(SENTENCES), atol=1e-2)


def test_the_next_stage_starts_from_what_the_last_one_saved(mntp: Path) -> None:
    start = open_for_training(mntp, lora=LoraSettings(rank=4))
    packed = PackedBatch.from_tokens(start.tokenize(SENTENCES))
    start.backbone.eval()
    with torch.inference_mode():
        vectors = start.vectors(packed, normalize=True)
    assert np.abs(vectors.numpy() - TextEncoder.load(mntp).encode(SENTENCES)).max() <= 1e-5


def test_d6_an_adapter_on_the_wrong_base_is_refused(simcse: Path, llama: Path) -> None:
    with pytest.raises(MismatchError, match=r"'simcse' was trained on weights .* in order"):
        TextEncoder.from_decoder(llama, adapters=[simcse / "adapters" / "2-simcse"])


def test_d6_adapters_in_the_wrong_order_are_refused(simcse: Path, llama: Path) -> None:
    folders = [simcse / "adapters" / "2-simcse", simcse / "adapters" / "1-mntp"]
    with pytest.raises(MismatchError):
        TextEncoder.from_decoder(llama, adapters=folders)


def test_d6_an_encoder_on_another_base_is_refused(mntp: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path, seed=5)
    with pytest.raises(MismatchError, match="not the base"):
        TextEncoder.load(mntp, base=other)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft 0.21 with transformers 5.23
def test_an_adapter_of_another_tool_loads(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(llama), config).save_pretrained(str(tmp_path))
    encoder = TextEncoder.from_decoder(llama, adapters=[tmp_path])
    assert not np.allclose(encoder.encode(SENTENCES), TextEncoder.load(llama).encode(SENTENCES), atol=1e-3)


def saved(base: Path, folder: Path, name: str | None) -> adapters.AdapterRecord:
    backbone = Backbone.load(base)
    torch.manual_seed(0)
    adapters.attach(backbone, LoraSettings(rank=2))
    return adapters.save(backbone, folder, stage="mntp", base_lineage="0" * 64, base=name)


def test_an_adapter_is_the_same_wherever_its_base_lay(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "elsewhere")
    first = saved(llama, tmp_path / "a", str(llama))
    second = saved(tmp_path / "elsewhere", tmp_path / "b", str(tmp_path / "elsewhere"))
    assert first == second
    settings = json.loads((tmp_path / "a" / adapters.SETTINGS).read_text())
    assert settings["target_modules"] == sorted(adapters.PROJECTIONS)  # peft writes them in the order of a set


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("meta-llama/Meta-Llama-3-8B@v1.0", "meta-llama/Meta-Llama-3-8B"),
        ("embedded:tiny-decoder", "embedded:tiny-decoder"),
        ("s3://models/llama", "s3://models/llama"),
        ("/models/llama", None),
        (None, None),
    ],
)
def test_an_adapter_names_its_base_and_no_folder_of_one_machine(
    llama: Path, tmp_path: Path, name: str | None, written: str | None
) -> None:
    saved(llama, tmp_path / "adapter", name)
    text = (tmp_path / "adapter" / adapters.SETTINGS).read_text()
    settings = json.loads(text)
    assert settings["base_model_name_or_path"] == written
    assert settings["revision"] == ("v1.0" if name and name.endswith("@v1.0") else None)
    assert str(llama) not in text


def test_a_damaged_adapter_is_found_out(llama: Path, mntp: Path, tmp_path: Path) -> None:
    adapters.copy(mntp / "adapters" / "1-mntp", tmp_path / "mntp")
    settings = json.loads((tmp_path / "mntp" / adapters.SETTINGS).read_text())
    (tmp_path / "mntp" / adapters.SETTINGS).write_text(json.dumps({**settings, "lora_alpha": 99}))
    with pytest.raises(VerificationError, match="checksum"):
        TextEncoder.from_decoder(llama, adapters=[tmp_path / "mntp"])


def test_an_adapter_that_is_cut_short_is_told(llama: Path, mntp: Path, tmp_path: Path) -> None:
    adapters.copy(mntp / "adapters" / "1-mntp", tmp_path / "mntp")
    (tmp_path / "mntp" / adapters.FILE).unlink()  # as one of another tool, which says nothing of its checksum
    weights = tmp_path / "mntp" / adapters.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged .*; fetch it again"):
        TextEncoder.from_decoder(llama, adapters=[tmp_path / "mntp"])


def test_a_folder_without_an_adapter_is_the_users_mistake(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter"):
        TextEncoder.from_decoder(llama, adapters=[tmp_path])
