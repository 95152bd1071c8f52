from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rayvec.modeling.attention import Form, Packing, _padded, attend, packed_attention
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.tokens import TokenBatch

HEADS, KEY_HEADS, DIM = 4, 2, 8
LENGTHS = (7, 3, 7, 1, 5)
PACKED = PackedBatch.from_tokens(TokenBatch.from_rows([np.zeros(n, np.int32) for n in LENGTHS]))
FORMS = {
    "bidirectional": Form(False, None, 0.0, None, None, None),
    "causal": Form(True, None, 0.0, None, None, None),
    "scaled": Form(False, 0.3, 0.0, None, None, None),
    "window": Form(False, None, 0.0, 2, None, None),
    "causal window": Form(True, None, 0.0, 2, None, None),
    "softcap": Form(False, None, 0.0, None, 1.5, None),
    "causal softcap in a window": Form(True, None, 0.0, 3, 1.5, None),
    "sinks": Form(False, None, 0.0, None, None, torch.linspace(-1, 1, HEADS)),
}


def states() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), heads, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    query, key, value = (torch.randn(shape, generator=random) for shape in shapes)
    return query, key, value


def by_hand(q: Tensor, k: Tensor, v: Tensor, form: Form) -> Tensor:
    """Attention of one text, token by token: [L, H, D]."""
    length, out = len(q), torch.zeros_like(q)
    for head in range(HEADS):
        for i in range(length):
            seen = [j for j in range(length) if not form.causal or j <= i]
            if form.window is not None:
                seen = [j for j in seen if (i - j < form.window if form.causal else abs(i - j) <= form.window)]
            scores = k[seen, head // 2] @ q[i, head] * (form.scaling or 1 / math.sqrt(DIM))
            if form.softcap:
                scores = form.softcap * torch.tanh(scores / form.softcap)
            if form.sinks_H is not None:
                scores = torch.cat([scores, form.sinks_H[head][None]])
            out[i, head] = scores.softmax(0)[: len(seen)] @ v[seen, head // 2]
    return out


def expected(form: Form) -> Tensor:
    parts = zip(*(tensor.split(LENGTHS) for tensor in states()), strict=True)
    return torch.cat([by_hand(q, k, v, form) for q, k, v in parts])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_text_attends_to_itself_alone(form: Form) -> None:
    assert torch.allclose(attend(*states(), PACKED, form), expected(form), atol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_padded_kernel_for_gpus_gives_the_same(form: Form) -> None:
    assert torch.allclose(_padded(*states(), PACKED, form), expected(form), atol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_both_kernels_have_the_same_gradients(form: Form) -> None:
    gradients = []
    for kernel in (attend, _padded):
        inputs = [tensor.requires_grad_() for tensor in states()]
        kernel(*inputs, PACKED, form).square().sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for a, b in zip(*gradients, strict=True):
        assert a is not None and b is not None and torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_dropout_changes_the_result_and_keeps_its_mean(softcap: float | None) -> None:
    form = Form(False, None, 0.3, None, softcap, None)
    plain = attend(*states(), PACKED, Form(False, None, 0.0, None, softcap, None))
    torch.manual_seed(0)
    draws = torch.stack([attend(*states(), PACKED, form) for _ in range(600)])
    assert not torch.equal(draws[0], draws[1])
    assert (draws.mean(0) - plain).abs().max() < 0.25


def test_a_window_wider_than_every_text_is_none() -> None:
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in states())
    module, packing = torch.nn.Identity(), Packing(PACKED, causal=False)
    wide, _ = packed_attention(module, q, k, v, sliding_window=7, packing=packing)
    full, _ = packed_attention(module, q, k, v, packing=packing)
    assert torch.equal(wide, full)


def test_a_call_without_a_pack_is_refused() -> None:
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in states())
    with pytest.raises(ValueError, match="packs only"):
        packed_attention(torch.nn.Identity(), q, k, v)


def test_a_padding_mask_beside_a_pack_is_refused() -> None:
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in states())
    with pytest.raises(ValueError, match="packs only"):
        packed_attention(torch.nn.Identity(), q, k, v, torch.ones(1, 23), packing=Packing(PACKED, causal=False))
