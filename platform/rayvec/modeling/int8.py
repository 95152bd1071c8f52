"""int8 on a CPU: the linear layers' products in whole numbers, with a scale a row on both sides.

Weights are rounded once, a scale for each output; activations at each call, a scale for each token. So a token's result
does not hang on what else is in the batch, as it would with one scale for all (torch's own quantize_dynamic, which is
deprecated too). Embeddings, norms, attention and whatever holds its weights in no linear layer (the experts of
mixtures) stay float32. Knows torch's linear layers. Knows no model.

Legend: T tokens, K inputs, N outputs of a layer.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from rayvec.errors import UserError

LARGEST = 127
#: Where the processor adds pairs of products in 16 bits (AVX2, AVX-512 without VNNI): two of 255 · 64 still fit.
LARGEST_PAIRED = 64
LEAST = 1e-30  # no scale is 0


class Int8Linear(nn.Module):
    """A linear layer for inference: float32 [..., K] to float32 [..., N]."""

    weight_KN: Tensor
    scale_N: Tensor
    bias_N: Tensor | None

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        super().__init__()
        weight_NK = weight_NK.detach().float()
        largest = largest_weight()
        scale_N1 = weight_NK.abs().amax(1, keepdim=True).clamp_min(LEAST) / largest
        rounded_NK = (weight_NK / scale_N1).round_().to(torch.int8)
        self.out_features, self.in_features = rounded_NK.shape
        self.register_buffer("weight_KN", rounded_NK.t())
        self.register_buffer("scale_N", scale_N1[:, 0].contiguous())
        self.register_buffer("bias_N", None if bias_N is None else bias_N.detach().float().clone())

    def forward(self, states: Tensor) -> Tensor:
        """The layer's output; the product is exact, so rows are independent of each other."""
        states_TK = states.reshape(-1, self.in_features)
        low_T1, high_T1 = torch.aminmax(states_TK, dim=1, keepdim=True)
        scale_T1 = torch.maximum(high_T1, -low_T1).clamp_min_(LEAST).div_(LARGEST)
        rounded_TK = (states_TK / scale_T1).round_().to(torch.int8)
        product_TN = torch._int_mm(rounded_TK, self.weight_KN).float().mul_(self.scale_N).mul_(scale_T1)
        if self.bias_N is not None:
            product_TN += self.bias_N
        return product_TN.view(*states.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What the layer's line in a printed model says."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias_N is not None}"


@cache
def largest_weight() -> int:
    """The largest whole number that a weight may be if this processor is to multiply exactly: 127, or 64."""
    ends = torch.full((4, 64), LARGEST, dtype=torch.int8)
    weights = torch.full((64, 64), LARGEST, dtype=torch.int8)
    return LARGEST if bool((torch._int_mm(ends, weights) == 64 * LARGEST**2).all()) else LARGEST_PAIRED


def quantize(model: nn.Module, name: str) -> None:
    """Put an Int8Linear in the place of each linear layer; adapters are merged by now.

    Raises UserError when the model `name` has no linear layer, so that int8 would change nothing.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, its weights the other way round

    found = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))]
    if not found:
        raise UserError(f"{name} has no linear layers that int8 could speed up; leave dtype out")
    for path, layer in found:
        weight_NK = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear(weight_NK, layer.bias))
