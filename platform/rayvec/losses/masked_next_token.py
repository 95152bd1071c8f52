"""Masked next token prediction (LLM2Vec, section 2.2): a masked token is predicted from the output one place before it.

The decoder was trained to predict token i from its output at i - 1, so MNTP keeps that place: the label stays at the
masked position i, its logits come from position i - 1 of the same text. The vocabulary head runs there only.
Knows hidden states, positions and a head. Knows no model, no tokenizer, no packing.
"""

# T tokens of the flat batch, M masked positions, D hidden, V vocabulary.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]


class MaskedLoss(NamedTuple):
    """loss: a scalar with gradient; correct: how many masked tokens have the highest logit."""

    loss: torch.Tensor
    correct: torch.Tensor


def masked_next_token_loss(
    states_TD: torch.Tensor,
    head: Head,
    positions_M: torch.Tensor,
    labels_M: torch.Tensor,
    *,
    denominator: float | None = None,
    chunk: int = 2048,
    chunks: int | None = None,
) -> MaskedLoss:
    """Cross-entropy in nats, summed over the masked positions and divided by `denominator` (default: their number).

    states_TD: outputs of a flat batch. head: states [m, D] to logits [m, V]. positions_M: flat places of the masked
    tokens, never the first of a text. denominator: masked positions of all ranks divided by the ranks, so that ranks
    averaged equal one big batch. Logits of at most `chunk` positions exist at a time, in both passes. chunks: in how
    many pieces, where ranks with unequally many positions must all call the head equally often (ZeRO 3).
    """
    assert positions_M.numel() == labels_M.numel(), "one label a masked position"
    assert positions_M.numel() == 0 or int(positions_M.min()) >= 1, "the first token of a text is never masked"
    total = states_TD.sum() * 0.0  # keeps the graph whole on a rank that drew no mask
    correct = torch.zeros((), dtype=torch.int64, device=states_TD.device)
    before_MD = states_TD[positions_M - 1]
    chunks = max(1, -(-positions_M.numel() // chunk)) if chunks is None else chunks
    for states_mD, labels_m in zip(before_MD.tensor_split(chunks), labels_M.tensor_split(chunks), strict=True):
        if chunks > 1 and torch.is_grad_enabled():
            loss, hits = checkpoint(_chunk_loss, head, states_mD, labels_m, use_reentrant=False)
        else:
            loss, hits = _chunk_loss(head, states_mD, labels_m)
        total, correct = total + loss, correct + hits
    return MaskedLoss(total / max(1.0, float(positions_M.numel() if denominator is None else denominator)), correct)


def _chunk_loss(head: Head, states_mD: torch.Tensor, labels_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits_mV = head(states_mD).float()
    loss = torch.nn.functional.cross_entropy(logits_mV, labels_m, reduction="sum")
    return loss, (logits_mV.detach().argmax(-1) == labels_m).sum()
