"""Pooling: token states to one vector per text. Knows shapes and spans. Knows no model, no tokenizer, no Ray.

Legend: T tokens of all texts end to end, B texts, D hidden. A text's row is tokens [row_start, …); its pooled tokens
are [start, stop), and every function accumulates in fp32, each text by itself: nothing else in the batch changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rayvec.errors import UserError
from rayvec.modeling.batching import PackedBatch


class Spans(NamedTuple):
    """Where each text's tokens lie in the pack; int64 [B] each, in order and without overlap."""

    row_start_B: Tensor
    start_B: Tensor
    stop_B: Tensor


Pooling = Callable[[Tensor, Spans], Tensor]


def mean(states_TD: Tensor, spans: Spans) -> Tensor:
    """The mean of each text's pooled tokens, fp32 [B, D].

    >>> states = torch.tensor([[9.0], [1.0], [3.0], [9.0], [5.0]])
    >>> mean(states, Spans(torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([3, 5]))).tolist()
    [[2.0], [5.0]]
    """
    counts_B1 = (spans.stop_B - spans.start_B).unsqueeze(1)
    return _segment_sums(states_TD.float(), spans) / counts_B1


def weighted_mean(states_TD: Tensor, spans: Spans) -> Tensor:
    """The mean weighted 1, 2, … n along each text's n pooled tokens, fp32 [B, D]; suits causal models (SGPT).

    >>> states = torch.tensor([[9.0], [1.0], [4.0]])
    >>> weighted_mean(states, Spans(torch.tensor([0]), torch.tensor([1]), torch.tensor([3]))).tolist()
    [[3.0]]
    """
    total = states_TD.shape[0]
    ends_B = torch.cat([spans.row_start_B[1:], spans.row_start_B.new_tensor([total])])
    start_T = torch.repeat_interleave(spans.start_B, ends_B - spans.row_start_B, output_size=total)
    weights_T = torch.arange(1, total + 1, device=states_TD.device) - start_T
    counts_B = spans.stop_B - spans.start_B
    sums_BD = _segment_sums(states_TD.float() * weights_T.unsqueeze(1), spans)
    return sums_BD / (counts_B * (counts_B + 1) // 2).unsqueeze(1)


def last_token(states_TD: Tensor, spans: Spans) -> Tensor:
    """The state of each text's last pooled token, fp32 [B, D].

    >>> states = torch.tensor([[9.0], [1.0], [4.0]])
    >>> last_token(states, Spans(torch.tensor([0]), torch.tensor([1]), torch.tensor([3]))).tolist()
    [[4.0]]
    """
    return states_TD[spans.stop_B - 1].float()


def bos(states_TD: Tensor, spans: Spans) -> Tensor:
    """The state of each row's first token ([CLS], <s>), fp32 [B, D].

    >>> states = torch.tensor([[9.0], [1.0], [4.0]])
    >>> bos(states, Spans(torch.tensor([0]), torch.tensor([1]), torch.tensor([3]))).tolist()
    [[9.0]]
    """
    return states_TD[spans.row_start_B].float()


POOLINGS: dict[str, Pooling] = {"mean": mean, "weighted_mean": weighted_mean, "last_token": last_token, "bos": bos}


def pooling(name: str) -> Pooling:
    """The pooling of a name. Raises UserError that lists the known ones."""
    if name not in POOLINGS:
        raise UserError(f"unknown pooling {name!r}; known are {', '.join(POOLINGS)}")
    return POOLINGS[name]


def pool(
    name: str, states_TD: Tensor, packed: PackedBatch, *, dim: int | None = None, normalize: bool = True
) -> Tensor:
    """One vector a text from a pack's states, fp32 [B, D]: pooled, cut to `dim` dimensions, of length 1 if asked."""
    spans = Spans(packed.cu_seqlens[:-1].long(), packed.pool_start_B, packed.pool_stop_B)
    vectors_BD = pooling(name)(states_TD, spans)[:, :dim]
    return torch.nn.functional.normalize(vectors_BD, dim=-1) if normalize else vectors_BD


def pool_spans(
    name: str,
    states_TD: Tensor,
    start_W: np.ndarray,
    stop_W: np.ndarray,
    *,
    dim: int | None = None,
    normalize: bool = True,
) -> Tensor:
    """One vector a span [start, stop) of a pack's tokens, fp32 [W, D]; spans may overlap, and lie in any order."""
    lengths_W = stop_W - start_W
    ends_W = np.cumsum(lengths_W)
    tokens = np.repeat(start_W - (ends_W - lengths_W), lengths_W) + np.arange(ends_W[-1] if len(ends_W) else 0)
    device = states_TD.device
    gathered_TD = states_TD[torch.from_numpy(tokens).to(device)]  # the spans side by side, each a text of its own
    first_W, last_W = torch.from_numpy(ends_W - lengths_W).to(device), torch.from_numpy(ends_W).to(device)
    vectors_WD = pooling(name)(gathered_TD, Spans(first_W, first_W, last_W))[:, :dim]
    return torch.nn.functional.normalize(vectors_WD, dim=-1) if normalize else vectors_WD


def _segment_sums(states_TD: Tensor, spans: Spans) -> Tensor:
    """Sums over [start, stop) of each text, [B, D]: one pass over gap, span, gap, span, …; deterministic everywhere."""
    previous_stop_B = torch.cat([spans.stop_B.new_zeros(1), spans.stop_B[:-1]])
    gaps_B, counts_B = spans.start_B - previous_stop_B, spans.stop_B - spans.start_B
    rest = states_TD.shape[0] - spans.stop_B[-1:]
    lengths = torch.cat([torch.stack([gaps_B, counts_B], dim=1).flatten(), rest])
    return torch.segment_reduce(states_TD, "sum", lengths=lengths, axis=0, unsafe=True)[1::2][: len(counts_B)]
