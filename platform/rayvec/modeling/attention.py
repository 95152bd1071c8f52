"""Packed attention: each text of a pack attends to itself alone, both ways or causally, in every transformers model.

The function is registered with transformers under NAME, and on purpose no mask function is: all of transformers' mask
builders then return None, and the text boundaries come from the pack alone. A call without a pack is refused, since its
padding mask would have been dropped silently.

Legend: T tokens of a pack, H query heads, K key heads, D head dimension, n texts of one length L. Knows tensors and
packs. Knows no model.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop_out
from torch.nn.functional import scaled_dot_product_attention

from rayvec.modeling.batching import PackedBatch

NAME = "rayvec_packed"


@dataclass(frozen=True)
class Packing:
    """What the model hands through to each attention layer: the pack, and whether texts are read causally."""

    batch: PackedBatch
    causal: bool


@dataclass(frozen=True)
class Form:
    """How one layer attends, beside its inputs."""

    causal: bool
    scaling: float | None
    dropout: float
    window: int | None  # the layer's sliding window, None when it reaches over every text of the pack
    softcap: float | None
    sinks_H: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether the fused kernels can do it: no soft-cap, no sinks."""
        return self.softcap is None and self.sinks_H is None

    def allows(self, length: int) -> Tensor | None:
        """Which keys a query may see, bool [L, L]; None when all of them (or, if causal, all before it)."""
        if self.window is None or self.window >= length:
            return None
        return _window_mask(length, self.window, self.causal)


def packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: query [1, H, T, D], key and value [1, K, T, D] to [1, T, H, D]."""
    if packing is None or attention_mask is not None:
        raise ValueError(f"attention {NAME!r} takes packs only; call the model through Backbone.hidden_states")
    q_THD, k_TKD, v_TKD = (states[0].transpose(0, 1) for states in (query, key, value))
    window = sliding_window if sliding_window and sliding_window < packing.batch.max_length else None
    form = Form(packing.causal, scaling, dropout, window, softcap or None, s_aux)
    return attend(q_THD, k_TKD, v_TKD, packing.batch, form).unsqueeze(0), None


def attend(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: PackedBatch, form: Form) -> Tensor:
    """Attention inside each text: [T, H, D]. Picks the kernel by device, number type and form."""
    kernels = {"by_length": _by_length, "varlen": _varlen, "padded": _padded}
    return kernels[kernel_for(q_THD, form)](q_THD, k_TKD, v_TKD, batch, form)


def kernel_for(q_THD: Tensor, form: Form) -> Literal["by_length", "varlen", "padded"]:
    """Which kernel serves: texts of each length together on a CPU; one varlen call, or padded SDPA, on a GPU."""
    if not q_THD.is_cuda:
        return "by_length"
    # varlen_attn has no dropout, and takes half precision and head dimensions up to 256 only.
    halves = q_THD.dtype in (torch.bfloat16, torch.float16)
    return "varlen" if form.plain and not form.dropout and halves and q_THD.shape[-1] <= 256 else "padded"


def _varlen(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: PackedBatch, form: Form) -> Tensor:
    """One kernel for the whole pack (torch's own flash attention)."""
    from torch.nn.attention.varlen import varlen_attn

    cu = batch.cu_seqlens
    reach = -1 if form.window is None else form.window
    # Causal windows count the query itself, two-sided ones do not: transformers' own masks are the measure.
    window = (reach - 1 if reach > 0 else -1, 0) if form.causal else (reach, reach)
    # A multiple of 64 keeps the number of compiled shapes small.
    longest = -(-batch.max_length // 64) * 64
    options = _gqa_option() if q_THD.shape[1] != k_TKD.shape[1] else {}
    states = (q_THD.contiguous(), k_TKD.contiguous(), v_TKD.contiguous())
    result = varlen_attn(*states, cu, cu, longest, longest, scale=form.scaling, window_size=window, **options)
    assert isinstance(result, Tensor)
    return result


@cache
def _gqa_option() -> dict[str, Any]:
    """torch 2.11 takes unequal head counts as they are; later ones want to be told."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def _by_length(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: PackedBatch, form: Form) -> Tensor:
    """The texts of each length together, without padding: one batched call a length."""
    parts = []
    for group in batch.groups:
        here = slice(group.start, group.start + group.count * group.length)

        def cut(states_TXD: Tensor, group: Any = group, here: slice = here) -> Tensor:
            chosen = states_TXD[here] if group.index is None else states_TXD[group.index]
            return chosen.unflatten(0, (group.count, group.length)).transpose(1, 2)  # [n, X, L, D]

        mask_LL = form.allows(group.length)
        out_nHLD = _attend_batch(cut(q_THD), cut(k_TKD), cut(v_TKD), mask_LL, form)
        parts.append(out_nHLD.transpose(1, 2).flatten(0, 1))
    if len(parts) == 1:
        return parts[0]
    out_THD = torch.cat(parts)
    return out_THD if batch.grouped_index_T is None else out_THD[batch.grouped_index_T]


def _padded(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: PackedBatch, form: Form) -> Tensor:
    """All texts padded to the longest: for a GPU where the varlen kernel does not serve."""
    index_BL, mask_BL = batch.padded_index_BL, batch.padding_mask_BL
    q, k, v = (states[index_BL].transpose(1, 2) for states in (q_THD, k_TKD, v_TKD))  # [B, X, L, D]
    mask_B1LL = mask_BL[:, None, None, :]
    allowed = form.allows(batch.max_length)
    if allowed is None and form.causal:
        allowed = _window_mask(batch.max_length, batch.max_length, True)
    if allowed is not None:
        mask_B1LL = mask_B1LL & allowed.to(mask_BL.device)
    out_BHLD = _attend_batch(q, k, v, mask_B1LL, form)
    return out_BHLD.transpose(1, 2).flatten(0, 1)[batch.flat_index_T]


def _attend_batch(q_nHLD: Tensor, k_nKLD: Tensor, v_nKLD: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """Attention of n texts of one length under an optional mask (True: may see): [n, H, L, D]."""
    repeats = q_nHLD.shape[1] // k_nKLD.shape[1]
    if repeats > 1:
        k_nKLD, v_nKLD = k_nKLD.repeat_interleave(repeats, 1), v_nKLD.repeat_interleave(repeats, 1)
    if not form.plain:
        return _eager(q_nHLD, k_nKLD, v_nKLD, mask, form)
    causal = form.causal and mask is None
    return scaled_dot_product_attention(
        q_nHLD, k_nKLD, v_nKLD, mask, dropout_p=form.dropout, is_causal=causal, scale=form.scaling
    )


def _eager(q_nHLD: Tensor, k_nHLD: Tensor, v_nHLD: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """Attention written out: the soft-cap of Gemma 2 and the sinks of gpt-oss are in no fused kernel."""
    length = q_nHLD.shape[-2]
    scale = q_nHLD.shape[-1] ** -0.5 if form.scaling is None else form.scaling
    scores_nHLL = (q_nHLD @ k_nHLD.transpose(-1, -2)).float() * scale
    if form.softcap is not None:
        scores_nHLL = form.softcap * torch.tanh(scores_nHLL / form.softcap)
    if mask is None and form.causal:
        mask = _window_mask(length, length, True).to(q_nHLD.device)
    if mask is not None:
        scores_nHLL = scores_nHLL.masked_fill(~mask.to(q_nHLD.device), torch.finfo(torch.float32).min)
    if form.sinks_H is not None:
        sinks = form.sinks_H.float().view(1, -1, 1, 1).expand(*scores_nHLL.shape[:-1], 1)
        scores_nHLL = torch.cat([scores_nHLL, sinks], dim=-1)
    weights_nHLL = scores_nHLL.softmax(dim=-1)[..., :length].to(v_nHLD.dtype)
    return drop_out(weights_nHLL, form.dropout, training=form.dropout > 0) @ v_nHLD


@lru_cache(maxsize=256)
def _window_mask(length: int, window: int, causal: bool) -> Tensor:
    """bool [L, L]: keys at distance ≤ window on both sides; if causal, the `window` keys that end with the query."""
    with torch.inference_mode(False):  # kept for later calls, which may train
        distance_LL = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        return (distance_LL >= 0) & (distance_LL < window) if causal else distance_LL.abs() <= window


def register() -> None:
    """Make NAME known to transformers; once a process, before a model is loaded. Calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
