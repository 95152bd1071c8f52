"""One model with random weights and a LoRA, read in two ways: by our packed backbone, and by plain transformers.

Both readings run through the same layers, so weights, LoRA and gradients are the same tensors, and what differs is the
way alone. Needs torch, transformers and peft: no Ray, no DeepSpeed, no pydantic, so it runs on a bare GPU machine.
"""

# B texts, L tokens of the longest, T tokens of all texts, M masked positions, D hidden, V vocabulary.

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayvec.data.collators import MaskedBatch, MaskPolicy, mask_tokens
from rayvec.losses.contrastive import info_nce
from rayvec.losses.masked_next_token import masked_next_token_loss
from rayvec.modeling import attention
from rayvec.modeling.backbone import Backbone, prepare
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.pooling import pool
from rayvec.modeling.tokens import TokenBatch

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IGNORED = -100


def random_model(config: Any, *, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A causal LM with random, frozen weights, made on the device in its type: an 8B takes seconds on a GPU."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    attention.register()
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME, dtype=dtype)
    return model.requires_grad_(False)


@dataclass
class Readings:
    """`whole` is the transformers model with its head; `backbone` our view of the same layers."""

    whole: Any
    backbone: Backbone

    @classmethod
    def build(
        cls,
        config: Any,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        lora_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        seed: int = 0,
    ) -> Readings:
        """A bidirectional model of a transformers configuration, made on the device, with LLM2Vec's LoRA (r 16)."""
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if device == "cuda" else "cpu")  # peft imports deepspeed
        import peft

        config = prepare(config, "bidirectional", "keep", attention_dropout)
        whole = random_model(config, device=device, dtype=dtype, seed=seed)
        backbone = Backbone(whole.get_decoder(), head=whole.get_output_embeddings())
        lora = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=lora_dropout, target_modules=list(PROJECTIONS))
        # LoRA in the weights' own type, as DeepSpeed's bf16 has it.
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for a property by its former name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            backbone.decoder = peft.get_peft_model(backbone.decoder, lora, autocast_adapter_dtype=False)
        for name, parameter in backbone.decoder.named_parameters():
            if "lora_B" in name:  # zeros at first: with them no gradient would reach lora_A
                torch.nn.init.normal_(parameter, std=0.02)
        return cls(whole.train(), backbone.train())

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains: the LoRA."""
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    @property
    def size(self) -> int:
        """Weights of the layers: without embeddings, head and LoRA."""
        named = self.backbone.decoder.named_parameters()
        return sum(p.numel() for name, p in named if "lora_" not in name and "embed" not in name)

    def read_packed(self) -> None:
        """Our reading from here on."""
        self.backbone.use_packed_kernel()

    def read_padded(self) -> None:
        """Plain transformers' sdpa from here on."""
        self.backbone.decoder.set_attn_implementation("sdpa")

    def checkpoint_activations(self, on: bool) -> None:
        """Full gradient checkpointing on or off."""
        if on:
            self.backbone.checkpoint_activations()
            return
        # The newer name is of transformers 5.2x; the older one warns there.
        model = self.backbone.decoder
        disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        disable()

    def set_dropout(self, *, attention: float, lora: float) -> None:
        """Dropout of attention weights and of the LoRA's inputs from here on."""
        for module in self.backbone.modules():
            if hasattr(module, "attention_dropout"):
                setattr(module, "attention_dropout", attention)  # noqa: B010
            if isinstance(module, torch.nn.Dropout):
                module.p = lora

    def step(self, loss: Callable[[], Tensor]) -> float:
        """Forward and backward from no gradients; the loss."""
        for parameter in self.parameters:
            parameter.grad = None
        result = loss()
        result.backward()
        return float(result.detach())

    def gradients(self) -> Tensor:
        """All gradients end to end, fp32 on the CPU."""
        return torch.cat([p.grad.float().cpu().flatten() for p in self.parameters if p.grad is not None])


def agreement(readings: Readings, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> dict[str, float]:
    """Loss of both, their relative difference, and the relative difference of all gradients (as vectors)."""
    readings.read_packed()
    loss_ours, grad_ours = readings.step(ours), readings.gradients()
    readings.read_padded()
    loss_theirs, grad_theirs = readings.step(theirs), readings.gradients()
    assert grad_ours.shape == grad_theirs.shape and float(grad_theirs.norm()) > 0, "both ways train the same weights"
    return {
        "loss_ours": loss_ours,
        "loss_theirs": loss_theirs,
        "loss_difference": abs(loss_ours - loss_theirs) / abs(loss_theirs),
        "gradient_difference": float((grad_ours - grad_theirs).norm() / grad_theirs.norm()),
    }


def require_agreement(found: Mapping[str, float], *, loss: float = 1e-5, gradient: float = 1e-4) -> None:
    """No time counts before results are equal."""
    if found["loss_difference"] > loss or found["gradient_difference"] > gradient:
        raise SystemExit(f"results differ, so times mean nothing: {dict(found)}")


# Masked next token prediction.


def masked_batch(texts: int, length: int, vocabulary: int, *, seed: int = 0) -> MaskedBatch:
    """Random tokens in texts of one length, a fifth of them chosen to be predicted, BERT's 80/10/10."""
    ids = np.random.default_rng(seed).integers(5, vocabulary, (texts, length))
    policy = MaskPolicy(0.2, "bert", mask_id=4, vocab_size=vocabulary, special_ids=(0, 1, 2, 3))
    rows = TokenBatch.from_rows(list(ids))
    return mask_tokens(rows, policy, np.arange(texts), [str(i) for i in range(texts)], seed=seed, step=0)


def mntp_ours(readings: Readings, batch: MaskedBatch) -> Callable[[], Tensor]:
    """The loss as MntpModule has it: packed texts, the head at masked positions only; parts of a batch add up."""
    backbone = readings.backbone
    device = backbone.device
    packed = PackedBatch.from_tokens(batch.texts, device)
    positions_M, labels_M = torch.from_numpy(batch.positions).to(device), torch.from_numpy(batch.labels).to(device)

    def head(states_mD: Tensor) -> Tensor:
        return backbone.logits_at(states_mD, torch.arange(len(states_mD), device=device))

    return lambda: masked_next_token_loss(backbone(packed), head, positions_M, labels_M, denominator=batch.masked).loss


def mntp_theirs(readings: Readings, batch: MaskedBatch) -> Callable[[], Tensor]:
    """The model's own loss with labels, as the reference has it: logits at every position."""
    lengths = batch.texts.lengths
    assert len(set(lengths.tolist())) == 1, "texts of one length need no padding"
    device = readings.backbone.device
    labels_T = np.full(len(batch.texts.input_ids), IGNORED, np.int64)
    labels_T[batch.positions] = batch.labels
    shape = (len(lengths), int(lengths[0]))
    ids_BL = torch.from_numpy(batch.texts.input_ids.astype(np.int64)).view(shape).to(device)
    labels_BL = torch.from_numpy(labels_T).view(shape).to(device)
    return lambda: readings.whole(input_ids=ids_BL, labels=labels_BL, use_cache=False).loss


# SimCSE.


def sentences(count: int, mean: float, longest: int, vocabulary: int, *, seed: int = 0) -> TokenBatch:
    """Random tokens in texts of log-normal lengths (sigma 0.5, as Wikipedia's sentences), at most `longest`."""
    generator = np.random.default_rng(seed)
    drawn = generator.lognormal(np.log(mean) - 0.125, 0.5, count)
    lengths = np.clip(np.rint(drawn * mean / drawn.mean()), 4, longest).astype(int)
    return TokenBatch.from_rows([generator.integers(5, vocabulary, length) for length in lengths])


def simcse_ours(readings: Readings, texts: TokenBatch) -> Callable[[], Tensor]:
    """Both views in one pack."""
    rows = np.arange(len(texts))
    packed = PackedBatch.from_tokens(texts.select(np.concatenate([rows, rows])), readings.backbone.device)

    def loss() -> Tensor:
        vectors_2BD = pool("mean", readings.backbone(packed), packed, normalize=False)
        return _views_loss(*vectors_2BD.chunk(2))

    return loss


def simcse_theirs(readings: Readings, texts: TokenBatch, length: int) -> Callable[[], Tensor]:
    """Each view padded to `length` and read by itself, as the reference's trainer does."""
    device = readings.backbone.device
    ids_BL, mask_BL = padded(texts, length)
    ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
    decoder = readings.backbone.decoder

    def vectors() -> Tensor:
        states_BLD = decoder(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        weights_BL1 = mask_BL.unsqueeze(-1).float()
        return (states_BLD.float() * weights_BL1).sum(1) / weights_BL1.sum(1)

    return lambda: _views_loss(vectors(), vectors())


def padded(texts: TokenBatch, length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, length], padded on the right."""
    assert texts.lengths.max() <= length, "padding cuts nothing"
    ids_BL, mask_BL = np.zeros((2, len(texts), length), np.int64)
    for row in range(len(texts)):
        ids = texts.row(row)
        ids_BL[row, : len(ids)], mask_BL[row, : len(ids)] = ids, 1
    return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL)


def _views_loss(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """InfoNCE at scale 1: at the recipe's 20, random weights tell all texts apart, and the gradient is next to none."""
    positives_B = torch.arange(len(first_BD), device=first_BD.device)
    return info_nce(first_BD, second_BD, positives_B, scale=1.0).loss
