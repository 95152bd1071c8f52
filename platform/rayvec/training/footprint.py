"""Footprint: how many parameters a stage holds and trains, and what its forward pass keeps for the backward pass.

The model is built on torch's meta device (shapes and number types, no memory) with the LoRA of the stage, and a few
thousand tokens are run through it there: autograd saves what it would save on a GPU, and its bytes are counted. So no
formula a family is needed. Knows transformers models, peft and autograd. Knows no ZeRO and no batch.
"""

# T tokens, H query heads, K key heads, D head dimension.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rayvec.errors import UserError
from rayvec.modeling import adapters
from rayvec.modeling.backbone import Backbone, prepare
from rayvec.modeling.trainable import train_all
from rayvec.training.pretraining import build_decoder
from rayvec.training.stages import Mntp, Pretrain, Simcse, TrainingConfig

#: The attention that stands in for the GPU's kernels while bytes are counted.
NAME = "rayvec_footprint"
#: Enough that what does not grow with the tokens (rotary frequencies) does not count.
PROBE_TOKENS = 4096


@dataclass(frozen=True)
class Activations:
    """Bytes a token of one forward pass."""

    #: Kept from the forward to the backward pass by all layers.
    kept: float
    #: The same where layers are computed again in the backward pass: each layer's input only.
    kept_checkpointed: float
    #: What one layer keeps; with checkpointing it exists once more while that layer is computed again.
    layer: float
    #: The widest tensor that a layer keeps: in its backward pass the gradients after and before it exist at once.
    widest: float


@dataclass(frozen=True)
class Footprint:
    """Counts of one stage. `published` counts the whole model, its vocabulary head too (tied weights once)."""

    family: str
    layers: int
    hidden: int
    vocabulary: int
    published: int
    loaded: int
    trained: int
    loaded_bytes: int
    trained_bytes: int
    #: None where the family's forward pass needs real numbers to decide what to compute (mixtures of experts).
    activations: Activations | None


def footprint(config: TrainingConfig, shape: Any, *, dtype: torch.dtype, mixed: bool) -> Footprint:
    """Measure a stage on a model's shape (a transformers configuration; None for the decoder that pretrain makes).

    dtype: of the frozen weights. mixed: whether DeepSpeed turns the trained weights into it too (its bf16); else peft
    keeps a LoRA in fp32. Raises UserError where LoRA finds no layer to adapt.
    """
    backbone, published = _build(config, shape, dtype, mixed=mixed)
    parameters = list(backbone.parameters())
    trained = [p for p in parameters if p.requires_grad]
    text = backbone.config.get_text_config()
    return Footprint(
        family=text.model_type,
        layers=text.num_hidden_layers,
        hidden=backbone.dim,
        vocabulary=text.vocab_size,
        published=published,
        loaded=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        loaded_bytes=sum(p.nbytes for p in parameters),
        trained_bytes=sum(p.nbytes for p in trained),
        activations=_activations(backbone),
    )


def _build(config: TrainingConfig, shape: Any, dtype: torch.dtype, *, mixed: bool) -> tuple[Backbone, int]:
    """The stage's model on the meta device, as `rayvec.training.modules` opens it, and the whole model's parameters."""
    _register()
    stage = config.stage
    with torch.device("meta"):
        if isinstance(stage, Pretrain) and shape is None:
            tokens: Any = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=0)
            model: Any = build_decoder(stage.decoder, tokens)
        else:
            model = _whole_model(config, shape, dtype)
        published = sum(p.numel() for p in model.parameters())
        model.set_attn_implementation(NAME)
        keeps_head = isinstance(stage, Mntp | Pretrain)
        backbone = Backbone(model.get_decoder(), head=model.get_output_embeddings() if keeps_head else None)
        if not isinstance(stage, Pretrain):
            if stage.lora is not None:
                adapters.attach(backbone, stage.lora)
            else:
                train_all(backbone)
    if mixed:
        backbone.to(dtype)
    return backbone.train(), published


def _whole_model(config: TrainingConfig, shape: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    dropout = config.stage.attention_dropout if isinstance(config.stage, Simcse) else None
    prepared = prepare(shape, config.attention or "bidirectional", config.attention_window or "keep", dropout)
    try:
        return AutoModelForCausalLM.from_config(prepared, dtype=dtype)
    except ValueError as error:
        raise UserError(f"{shape.model_type} is no decoder ({' '.join(str(error).split())[:120]})") from None


def _activations(backbone: Backbone) -> Activations | None:
    """Count what autograd keeps of PROBE_TOKENS tokens, layer by layer."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    kept = _Kept(backbone)
    counts: list[int] = []
    hooks = [layer.register_forward_pre_hook(lambda *_: counts.append(kept.bytes)) for layer in layers]
    hooks += [layer.register_forward_hook(lambda *_: counts.append(kept.bytes)) for layer in layers]
    ids_1T = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")
    try:
        with _GpuDropout(), torch.autograd.graph.saved_tensors_hooks(kept.count, lambda tensor: tensor):
            backbone.decoder(input_ids=ids_1T, position_ids=ids_1T, use_cache=False)
    except RuntimeError:  # an operation that has no meta kernel, too
        return None
    finally:
        for hook in hooks:
            hook.remove()
    each = [stop - start for start, stop in zip(counts[::2], counts[1::2], strict=True)]
    state = backbone.dim * backbone.dtype.itemsize
    outside = kept.bytes - sum(each)
    return Activations(
        kept=kept.bytes / PROBE_TOKENS,
        kept_checkpointed=outside / PROBE_TOKENS + len(layers) * state,
        layer=max(each, default=0) / PROBE_TOKENS,
        widest=kept.widest / PROBE_TOKENS,
    )


class _Kept:
    """Bytes of the tensors that autograd saves: each storage once, the model's own weights not at all."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = self.widest = 0
        # Storages are held, so that no other takes a freed one's identity.
        self._seen = {s._cdata: s for s in (t.untyped_storage() for t in (*model.parameters(), *model.buffers()))}

    def count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.bytes += storage.nbytes()
            self.widest = max(self.widest, storage.nbytes())
        return tensor


class _GpuDropout(TorchFunctionMode):
    """Dropout as GPUs do it, keeping one byte a number; on other devices it keeps a number."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        return (_dropout if func is nn.functional.dropout else func)(*args, **kwargs or {})


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # torch's names
    del inplace
    return torch.native_dropout(input, p, training)[0]


class _Flash(torch.autograd.Function):
    """Keeps what flash attention keeps: its inputs, its output and a number a query and head (Dao et al. 2022)."""

    @staticmethod
    def forward(ctx: Any, q_1HTD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor) -> Tensor:
        out_1THD = torch.empty_like(q_1HTD.transpose(1, 2))
        logsumexp_1HT = torch.empty(q_1HTD.shape[:3], dtype=torch.float32, device=q_1HTD.device)
        ctx.save_for_backward(q_1HTD, k_1KTD, v_1KTD, out_1THD, logsumexp_1HT)
        return out_1THD


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, dropout: float = 0.0, **__: Any
) -> tuple[Tensor, None]:
    if dropout:  # the kernel with dropout takes equal head counts only, see modeling/attention.py
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    result: Tensor = _Flash.apply(query, key, value)
    return result, None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
