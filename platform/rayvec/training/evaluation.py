"""Measuring an encoder while it trains: all ranks encode together, each its share, and all see every vector.

What is measured comes in from above as an `Evaluator`. Knows modules and ranks. Knows no metric and no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from rayvec.losses.gather import gather_rows, most_over_ranks, rank, shares
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.batching_plan import plan_batches
from rayvec.modeling.encoder import TOKEN_BUDGETS


class Encode(Protocol):
    """Texts to normalised vectors float32 [n, D]."""

    @property
    def instructions(self) -> Mapping[str, str]:
        """The encoder's instructions by name."""

    def __call__(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """As TextEncoder.encode. Every rank must call it, with the same texts."""

    def guess(self, texts: Sequence[str]) -> tuple[float, float]:
        """MNTP's loss and accuracy at masked tokens of these texts; as MntpModule.guess."""


class Evaluator(Protocol):
    """Tasks, ready to be measured as often as asked."""

    def __call__(self, encode: Encode) -> Mapping[str, float]:
        """Values by name, eval/SET/METRIC."""


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[Encode]:
    """The module's encoder as it is now, without dropout; training goes on after the block."""
    module.eval()
    try:
        with torch.no_grad():
            yield _Together(module)
    finally:
        module.train()


class _Together:
    def __init__(self, module: Any) -> None:
        self.module, self.encoder = module, module.encoder

    @property
    def instructions(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.encoder.folder.manifest.prompts.instructions
        return found

    def guess(self, texts: Sequence[str]) -> tuple[float, float]:
        guessed: tuple[float, float] = self.module.guess(texts)
        return guessed

    def __call__(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        counts = shares(len(texts))
        start = sum(counts[: rank()])
        # A rank without a share encodes something all the same: under ZeRO 3 every forward pass is everybody's.
        own = list(texts[start : start + counts[rank()]]) or list(texts[:1])
        backbone = self.encoder.backbone
        tokens = self.encoder.tokenize(own, instruction)
        budget = TOKEN_BUDGETS.get(backbone.device.type, 4096)
        plans = list(plan_batches(tokens.lengths, budget, padded=not backbone.packed))
        vectors_BD = torch.zeros(len(own), self.encoder.folder.manifest.dim, device=backbone.device)
        for number in range(most_over_ranks(len(plans), backbone.device)):
            rows = plans[min(number, len(plans) - 1)]
            packed = PackedBatch.from_tokens(tokens.select(rows), backbone.device)
            vectors_BD[torch.from_numpy(rows).to(backbone.device)] = self.encoder.vectors(packed, normalize=True)
        result: np.ndarray = gather_rows(vectors_BD[: counts[rank()]], counts).cpu().numpy()
        return result
