"""InfoNCE on cosines: a query's positive against every other document of the global batch.

Knows vectors and text keys. Knows no model, no pooling, no ranks: the caller gathers the documents first.
"""

# B queries of this rank, N documents of all ranks, D dimensions.

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class ContrastiveLoss(NamedTuple):
    """loss: a scalar with gradient; accuracy: share of queries whose positive has the highest cosine."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def info_nce(
    queries_BD: torch.Tensor,
    documents_ND: torch.Tensor,
    positives_B: torch.Tensor,
    *,
    scale: float,
    ignored_BN: torch.Tensor | None = None,
) -> ContrastiveLoss:
    """Mean over the queries of -log softmax(scale * cosine)[positive] (van den Oord et al. 2018, equation 4).

    positives_B: the column of each query's positive. scale: 1 / temperature (LLM2Vec: 20 for SimCSE, 50 supervised).
    ignored_BN: true where a document is no negative of that query, see `false_negatives`.
    """
    cosine_BN = normalized(queries_BD) @ normalized(documents_ND).T
    logits_BN = cosine_BN * scale
    if ignored_BN is not None:
        logits_BN = logits_BN.masked_fill(ignored_BN, -math.inf)
    loss = torch.nn.functional.cross_entropy(logits_BN, positives_B)
    return ContrastiveLoss(loss, (logits_BN.detach().argmax(-1) == positives_B).float().mean())


def normalized(rows_BD: torch.Tensor) -> torch.Tensor:
    """Rows of length one, at least in float32."""
    rows_BD = rows_BD if rows_BD.dtype == torch.float64 else rows_BD.float()
    return torch.nn.functional.normalize(rows_BD, dim=-1)


def false_negatives(
    query_keys_B: torch.Tensor,
    positives_B: torch.Tensor,
    document_keys_N: torch.Tensor,
    owner_keys_N: torch.Tensor,
) -> torch.Tensor:
    """Which documents must not be pushed away from which query, bool [B, N]; its own positive is never among them.

    Keys are equal where texts are equal. A document is no negative where its text is that of the query's positive, or
    where it is the positive of another query with the same text. owner_keys_N: the key of the query that a document is
    the positive of, -1 for a hard negative.
    """
    same_text_BN = document_keys_N[None, :] == document_keys_N[positives_B][:, None]
    same_query_BN = owner_keys_N[None, :] == query_keys_B[:, None]
    ignored_BN = same_text_BN | same_query_BN
    return ignored_BN.scatter(1, positives_B[:, None], False)


def alignment(first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of normalised pairs; 0 when both views are the same (Wang and Isola 2020, section 4.1)."""
    return (normalized(first_BD) - normalized(second_BD)).square().sum(-1).mean()


def uniformity(rows_BD: torch.Tensor) -> torch.Tensor:
    """Log of the mean Gaussian potential of all pairs; lower is more spread (Wang and Isola 2020, section 4.1)."""
    squared = torch.pdist(normalized(rows_BD)).square()
    return squared.mul(-2).exp().mean().log() if squared.numel() else squared.new_zeros(())
