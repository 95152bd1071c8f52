"""PackedBatch: texts end to end in one sequence, without padding, as tensors. The input of every forward pass.

Legend: B texts, T tokens of all texts, L tokens of the longest. Which texts go together is said in `batching_plan`.
Knows token batches and torch tensors. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rayvec.modeling.tokens import TokenBatch


@dataclass(frozen=True)
class LengthGroup:
    """The texts of one length in a pack: where their tokens lie, as a range or as an index."""

    length: int
    start: int  # first token, when the texts lie side by side
    count: int  # texts
    index: Tensor | None  # int64 [count * length], when they do not


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B texts end to end in one row of T tokens; attention stays inside each text (`attention.packed_attention`)."""

    input_ids_T: Tensor  # int64
    position_ids_T: Tensor  # int64, from 0 in each text
    cu_seqlens: Tensor  # int32 [B + 1]: text b is tokens [cu_seqlens[b], cu_seqlens[b + 1])
    pool_start_B: Tensor  # int64: text b's pooled tokens are [pool_start_B[b], pool_stop_B[b]) of the pack
    pool_stop_B: Tensor  # int64
    lengths: np.ndarray  # int64 [B], on the host: planning never waits for the device
    max_length: int

    @classmethod
    def from_tokens(cls, batch: TokenBatch, device: str | torch.device = "cpu") -> PackedBatch:
        """Pack all rows of a TokenBatch, in order."""
        assert len(batch) > 0, "a pack holds at least one text"
        lengths = batch.lengths
        starts = batch.offsets[:-1] - batch.offsets[0]
        positions = np.arange(len(batch.input_ids)) - np.repeat(starts, lengths)
        cu_seqlens = (batch.offsets - batch.offsets[0]).astype(np.int32)

        @torch.inference_mode(False)
        def on_device(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

        return cls(
            input_ids_T=on_device(batch.input_ids.astype(np.int64)),
            position_ids_T=on_device(positions.astype(np.int64)),
            cu_seqlens=on_device(cu_seqlens),
            pool_start_B=on_device(starts + batch.pool_start),
            pool_stop_B=on_device(starts + batch.pool_end),
            lengths=lengths,
            max_length=int(lengths.max()),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.input_ids_T.device

    # What is made once and kept is made outside inference mode: a later call may train on the same pack.

    @cached_property
    @torch.inference_mode(False)
    def groups(self) -> tuple[LengthGroup, ...]:
        """The texts by length, for batched attention without padding; made once a pack, used in every layer.

        In the order of their first tokens: in a pack that is sorted by length, that is the order of the pack.
        """
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        groups = []
        for length in np.unique(self.lengths):
            rows = np.flatnonzero(self.lengths == length)
            side_by_side = rows[-1] - rows[0] + 1 == len(rows)
            index = None
            if not side_by_side:
                flat = (starts[rows][:, None] + np.arange(length)).reshape(-1)
                index = torch.from_numpy(flat).to(self.device)
            groups.append(LengthGroup(int(length), int(starts[rows[0]]), len(rows), index))
        return tuple(sorted(groups, key=lambda group: group.start))

    @cached_property
    @torch.inference_mode(False)
    def grouped_index_T(self) -> Tensor | None:
        """Where each token of the pack lies when the groups stand end to end, int64 [T]; None when it is the same."""
        if all(group.index is None for group in self.groups):
            return None
        spans = ((group, torch.arange(group.start, group.start + group.count * group.length)) for group in self.groups)
        order_T = torch.cat([span.to(self.device) if group.index is None else group.index for group, span in spans])
        return torch.argsort(order_T)

    @cached_property
    @torch.inference_mode(False)
    def padded_index_BL(self) -> Tensor:
        """Where each text's token j lies in the pack, int64 [B, L]; beyond a text's end, its last token."""
        columns_L = torch.arange(self.max_length, device=self.device)
        first_B1 = self.cu_seqlens[:-1, None].long()
        last_B1 = self.cu_seqlens[1:, None].long() - 1
        return torch.minimum(first_B1 + columns_L, last_B1)

    @cached_property
    @torch.inference_mode(False)
    def padding_mask_BL(self) -> Tensor:
        """True at tokens, False at padding, bool [B, L]."""
        lengths_B1 = (self.cu_seqlens[1:] - self.cu_seqlens[:-1])[:, None]
        return torch.arange(self.max_length, device=self.device) < lengths_B1

    @cached_property
    @torch.inference_mode(False)
    def flat_index_T(self) -> Tensor:
        """Where each token of the pack lies in the padded [B * L] layout, int64 [T]."""
        row_T = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return torch.from_numpy(row_T).to(self.device) * self.max_length + self.position_ids_T
