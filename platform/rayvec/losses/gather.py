"""Rows and sums across ranks, with gradients.

Each rank computes the mean loss of its own rows against everybody's documents; DDP and DeepSpeed then average the
gradients. For that average to be the gradient of one big batch, the backward of the gather must *sum* over ranks.
Knows torch.distributed; without a process group there is one rank. Knows no loss and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's number; 0 without a process group."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if _grouped() else 1


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: torch.Tensor) -> torch.Tensor:
        ctx.rows = rows_BD.shape[0]
        parts = [torch.empty_like(rows_BD) for _ in range(world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gradient_ND = gradients[0].contiguous().clone()
        dist.all_reduce(gradient_ND, op=dist.ReduceOp.SUM)
        start = rank() * ctx.rows
        return gradient_ND[start : start + ctx.rows]


def gather_rows(rows_BD: torch.Tensor) -> torch.Tensor:
    """All ranks' rows [world * B, …] in rank order. Every rank must bring equally many.

    The gradient of a row is the sum of what all ranks' losses ask of it.
    """
    if world_size() == 1:
        return rows_BD
    if not rows_BD.requires_grad:
        parts = [torch.empty_like(rows_BD) for _ in range(world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)
    gathered: torch.Tensor = _GatherRows.apply(rows_BD)
    return gathered


def sum_over_ranks(value: float, device: torch.device | str = "cpu") -> float:
    """The sum of a number over all ranks, in float64."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return float(total)


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all ranks, equal to the bit everywhere; no gradient counts as zeros."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
