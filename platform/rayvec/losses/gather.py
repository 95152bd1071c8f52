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
    def forward(ctx: Any, rows_BD: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        ctx.sizes = sizes
        return _all_rows(rows_BD, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient_ND = gradients[0].contiguous().clone()
        dist.all_reduce(gradient_ND, op=dist.ReduceOp.SUM)
        start = sum(ctx.sizes[: rank()])
        return gradient_ND[start : start + ctx.sizes[rank()]], None


def gather_rows(rows_BD: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
    """All ranks' rows [N, …] in rank order; the gradient of a row is the sum of what all ranks' losses ask of it.

    sizes: how many rows each rank brings; by default all bring as many as this one.
    """
    if world_size() == 1:
        return rows_BD
    sizes = [rows_BD.shape[0]] * world_size() if sizes is None else sizes
    assert sizes[rank()] == rows_BD.shape[0], "a rank brings as many rows as it said"
    if not rows_BD.requires_grad:
        return _all_rows(rows_BD, sizes)
    gathered: torch.Tensor = _GatherRows.apply(rows_BD, sizes)
    return gathered


def _all_rows(rows_BD: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """gloo and NCCL gather blocks of one size alone: shorter ones travel with rows of zeros, which are dropped."""
    longest = max(sizes)
    block = rows_BD.new_zeros((longest, *rows_BD.shape[1:]))
    block[: rows_BD.shape[0]] = rows_BD.detach()
    parts = [torch.empty_like(block) for _ in sizes]
    dist.all_gather(parts, block)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def shares(count: int) -> list[int]:
    """How many of `count` things each rank takes: as even as can be, the first ranks one more."""
    return [count // world_size() + (r < count % world_size()) for r in range(world_size())]


def sum_over_ranks(value: float, device: torch.device | str = "cpu") -> float:
    """The sum of a number over all ranks, in float64."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return float(total)


def most_over_ranks(count: int, device: torch.device | str = "cpu") -> int:
    """The largest of all ranks' counts."""
    if world_size() == 1:
        return count
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


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
