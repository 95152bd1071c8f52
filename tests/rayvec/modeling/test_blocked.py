from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayvec.modeling.blocked import BlockedLinear, block_weights
from rayvec.modeling.encoder import TextEncoder
from tests.models import SENTENCES, save_model

TEXTS = [*SENTENCES, "", "a", "今天天气很好" * 200]


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 64, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 600])
@torch.inference_mode()
def test_the_products_are_those_of_the_layer(bias: bool, tokens: int) -> None:
    states_1TK = torch.randn(1, tokens, 48)
    out_1TN = BlockedLinear(layer(bias))(states_1TK)
    assert out_1TN.shape == (1, tokens, 64)
    assert (out_1TN - layer(bias)(states_1TK)).abs().max() <= 1e-5


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others() -> None:
    states_TK = torch.randn(33, 48)
    blocked = BlockedLinear(layer())
    assert (blocked(states_TK)[7:8] - blocked(states_TK[7:8])).abs().max() <= 1e-6


def test_weights_come_back_to_the_bit() -> None:
    before, after = layer().state_dict(), BlockedLinear(layer()).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_reach_the_input() -> None:
    inputs = [torch.ones(2, 48, requires_grad=True) for _ in range(2)]
    for module, states in zip((layer(), BlockedLinear(layer())), inputs, strict=True):
        module(states).square().sum().backward()
    assert inputs[0].grad is not None and inputs[1].grad is not None
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-4)


def test_only_plain_float32_layers_are_replaced() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(layer(), layer().to(torch.bfloat16), Other(4, 4), nn.Sequential(layer()))
    assert block_weights(model) == 2
    assert [type(model[0]), type(model[1]), type(model[2])] == [BlockedLinear, nn.Linear, Other]
    assert isinstance(model[3][0], BlockedLinear)


def test_a_layer_whose_kernel_fails_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayvec.modeling.blocked.TOLERANCE", -1.0)
    model = nn.Sequential(layer())
    assert block_weights(model) == 0 and type(model[0]) is nn.Linear


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "bert", "mixtral"])
def test_vectors_are_those_of_dense_weights(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(family, tmp_path)
    fast = TextEncoder.load(folder, device="cpu")
    assert any(isinstance(module, BlockedLinear) for module in fast.backbone.modules())
    monkeypatch.setattr("rayvec.modeling.blocked.block_weights", lambda _model: 0)
    plain = TextEncoder.load(folder, device="cpu")
    assert not any(isinstance(module, BlockedLinear) for module in plain.backbone.modules())
    assert np.abs(fast.encode(TEXTS) - plain.encode(TEXTS)).max() <= 1e-5
