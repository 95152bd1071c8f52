"""float32 on a CPU: the linear layers' weights in oneDNN's blocked layout, put in order once at load.

torch multiplies float32 by MKL, which orders the weights anew in each call. oneDNN's own kernels over weights that lie
ready are faster (AVX-512, one thread, 512 and 1,024 tokens: 92 to 103 GFLOP/s where `linear` has 75 to 85; a query's 8
tokens 60 to 73 for 41 to 50). The numbers change in the last bits. The dense weights go; `weight` and the state dict
give them back, to the bit. Knows torch's linear layers. Knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

#: Rows that the layout is chosen for; any number can be multiplied, a query's as fast as with a layout of its own.
ROWS = 512
TOLERANCE = 1e-4  # relative to the largest output; another order of summing moves a hundredth of it


class BlockedLinear(nn.Module):
    """A linear layer for inference, float32 [..., K] to [..., N]; gradients flow to its input, and its weights stay."""

    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        # No buffer: it has no storage that others could save or move.
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    @property
    def weight(self) -> Tensor:
        """The weights as they were, [N, K]; a copy."""
        dense: Tensor = self.blocked.to_dense()
        return dense

    def forward(self, states: Tensor) -> Tensor:
        """The layer's output."""
        if torch.is_grad_enabled() and states.requires_grad:
            return linear(states, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.blocked, self.bias, "none", [], "")
        return out

    def extra_repr(self) -> str:
        """What the layer's line in a printed model says."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


def block_weights(model: nn.Module) -> int:
    """Put a BlockedLinear in the place of each float32 linear layer that it gives the results of; returns how many."""
    found = [(path, layer) for path, layer in model.named_modules() if type(layer) is nn.Linear]
    count = 0
    for path, layer in found:
        blocked = _blocked(layer)
        if blocked is not None:
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, blocked)
            count += 1
    return count


@torch.no_grad()
def _blocked(layer: nn.Linear) -> BlockedLinear | None:
    """The layer with its weights in order; None where torch has no such kernels here, or they give other numbers."""
    if not torch.backends.mkldnn.is_available() or layer.weight.device.type != "cpu":
        return None
    if layer.weight.dtype != torch.float32 or not layer.weight.numel():
        return None
    states_TK = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected_TN = layer(states_TK)
    try:
        blocked = BlockedLinear(layer)
        out_TN = blocked(states_TK)
    except (RuntimeError, AttributeError):  # the operators are torch's own, and their names no promise
        return None
    return blocked if (out_TN - expected_TN).abs().max() <= TOLERANCE * expected_TN.abs().max() else None
