from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayvec.errors import UserError
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.int8 import LARGEST_PAIRED, Int8Linear, largest_weight, quantize
from tests.models import SENTENCES, save_model

TEXTS = [*SENTENCES, "", "a", "今天天气很好" * 200]


@pytest.fixture(scope="module")
def rounded(llama: Path) -> TextEncoder:
    return TextEncoder.load(llama, device="cpu", dtype="int8")


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_a_layer_by_hand() -> None:
    weight_NK = torch.tensor([[1.0, -0.5], [0.0, 0.25]])
    layer = Int8Linear(weight_NK, torch.tensor([10.0, 0.0]))
    most = largest_weight()
    half = {127: 64, LARGEST_PAIRED: 32}[most]  # 63.5 goes to its even neighbour
    assert layer.weight_KN.t().tolist() == [[most, -half], [0, most]]
    # [2, -1] is (127, -64) steps of 2 / 127; rows have scales of their own, and a row of zeros stays one.
    expected = (127 * most + 64 * half) * (2 / 127) * (1 / most) + 10
    out = layer(torch.tensor([[[2.0, -1.0]], [[0.0, 0.0]]]))
    assert out.shape == (2, 1, 2)
    assert out[0, 0].tolist() == pytest.approx([expected, -64 * (2 / 127) * 0.25], rel=1e-6)
    assert out[1, 0].tolist() == [10.0, 0.0]


def test_products_are_exact_at_the_ends() -> None:
    ends = torch.full((5, 256), 127, dtype=torch.int8)
    weights = torch.full((256, 32), largest_weight(), dtype=torch.int8)
    assert (torch._int_mm(ends, weights) == 256 * 127 * largest_weight()).all()
    assert (torch._int_mm(-ends, weights) == -256 * 127 * largest_weight()).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(torch.randn(48, 64, generator=generator), None)
    states_TK = torch.randn(33, 64, generator=generator) * torch.logspace(-3, 3, 33)[:, None]
    assert torch.equal(layer(states_TK)[7:8], layer(states_TK[7:8]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3_moe"])
def test_vectors_agree_with_float32(family: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path)
    exact, rounded = TextEncoder.load(folder, device="cpu"), TextEncoder.load(folder, device="cpu", dtype="int8")
    assert any(isinstance(module, Int8Linear) for module in rounded.backbone.modules())
    mine, theirs = rounded.encode(TEXTS), exact.encode(TEXTS)
    assert mine.dtype == np.float32 and not np.array_equal(mine, theirs)
    assert cosines(mine, theirs).min() >= 0.995


def test_the_embedded_encoder_with_its_merged_adapters_agrees() -> None:
    exact, rounded = TextEncoder.load("tiny", device="cpu"), TextEncoder.load("tiny", device="cpu", dtype="int8")
    assert cosines(rounded.encode(SENTENCES), exact.encode(SENTENCES)).min() >= 0.995


def test_the_fingerprint_is_that_of_the_encoder(rounded: TextEncoder, encoder: TextEncoder) -> None:
    assert rounded.fingerprint == encoder.fingerprint


def test_a_vector_does_not_depend_on_the_batch(rounded: TextEncoder) -> None:
    together = rounded.encode(TEXTS)
    alone = np.concatenate([rounded.encode([text]) for text in TEXTS])
    assert np.abs(together - alone).max() <= 1e-5


def test_a_gpu_is_refused_before_anything_is_loaded(llama: Path) -> None:
    with pytest.raises(UserError, match="dtype=int8 is for a CPU, and the device is cuda; use device=cpu"):
        TextEncoder.load(llama, device="cuda", dtype="int8")


def test_it_keeps_off_a_gpu_that_is_there(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayvec.modeling.backbone.choose_device", lambda _: "cuda")
    assert TextEncoder.load(llama, dtype="int8").backbone.device.type == "cpu"


def test_rounded_weights_are_not_saved(rounded: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="load it with dtype=float32"):
        rounded.save(tmp_path / "merged", merged=True)
    assert not (tmp_path / "merged").exists()


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match="no linear layers"):
        quantize(nn.Sequential(nn.LayerNorm(4)), "model")
