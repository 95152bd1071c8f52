"""TrainableEncoder: an encoder opened for one more stage of training, and saved after it. What `rayvec.training` calls.

    encoder = open_for_training("tiny-decoder", lora=LoraSettings(), head=True)         # MNTP
    packed = PackedBatch.from_tokens(encoder.tokenize(texts), encoder.backbone.device)
    states_TD = encoder.backbone(packed)                      # gradients, LoRA unmerged, dropout in train() mode
    logits_PV = encoder.backbone.logits_at(states_TD, positions_P)   # the vocabulary head at chosen positions only
    vectors_BD = encoder.vectors(packed)                      # pooled; SimCSE and supervised stages
    encoder.save(output, stage="mntp", training={...})        # an encoder folder that TextEncoder.load takes

Knows backbones, adapters and folders. Knows no loss, no optimizer, no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayvec.errors import UserError
from rayvec.modeling import adapters, references
from rayvec.modeling.adapters import LoraSettings
from rayvec.modeling.backbone import Backbone, choose_dtype
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.folder import EncoderFolder, adapter_names, open_encoder, write_folder
from rayvec.modeling.pooling import pool
from rayvec.modeling.text_tokenizer import TextTokenizer
from rayvec.modeling.tokens import TokenBatch
from rayvec.storage import Fingerprint


class TrainableEncoder:
    """A backbone with a LoRA to train, on merged weights of the stages before, and how its texts are read."""

    def __init__(self, folder: EncoderFolder, backbone: Backbone) -> None:
        self.folder = folder
        self.backbone = backbone

    @property
    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer; `.tokenizer.tokenizer` is the transformers one."""
        return self.folder.tokenizer

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder that this stage starts from."""
        return self.folder.fingerprint

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """As the trained encoder will read them."""
        return self.folder.tokenizer.tokenize(texts, instruction)

    def vectors(self, packed: PackedBatch, *, normalize: bool = False) -> Tensor:
        """Pooled vectors fp32 [B, D] with gradients."""
        return self.pooled(self.backbone(packed), packed, normalize=normalize)

    def pooled(self, states_TD: Tensor, packed: PackedBatch, *, normalize: bool = False) -> Tensor:
        """Pool states that a wrapper (DeepSpeed, DDP) around the backbone gave, fp32 [B, D]."""
        manifest = self.folder.manifest
        return pool(manifest.pooling, states_TD, packed, dim=manifest.dim, normalize=normalize)

    def save(self, path: str | Path, *, stage: str, training: Mapping[str, Any] | None = None) -> None:
        """Write the encoder folder after this stage: the adapters before it, and its own. rayvec.json comes last."""
        path, old = Path(path), self.folder.manifest
        name = f"adapters/{len(old.adapters) + 1}-{stage}"
        record = adapters.save(self.backbone, path / name, stage=stage, base_lineage=old.lineage)
        new = old.with_adapter(stage, record.sha256, training)
        assert adapter_names(new)[-1] == name
        config = self.backbone.saved_config()
        write_folder(path, new, self.tokenizer, config, [*self.folder.adapters, path / name])


def open_for_training(
    reference: str | Path,
    *,
    lora: LoraSettings,
    head: bool = False,
    attention_dropout: float | None = None,
    continue_last: bool = False,
    gradient_checkpointing: bool = False,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    **settings: Any,
) -> TrainableEncoder:
    """Open a decoder or an encoder folder for the next stage: adapters so far are merged, a fresh LoRA is put on.

    `continue_last` trains the last adapter further instead (the paper's supervised stage from SimCSE's LoRA). `head`
    keeps the vocabulary head, frozen, for MNTP. `settings` change how texts are read: attention, attention_window,
    pooling, prompts, max_length, normalize. Raises UserError for a merged encoder, since its base is no longer there.
    """
    folder = open_encoder(reference)
    if folder.manifest.merged:
        raise UserError(f"{reference} is a merged export; train on from the folder with adapters that it was made of")
    if settings:
        folder = folder.with_settings(**settings)
    manifest = folder.manifest
    backbone = Backbone.load(
        folder.weights,
        attention=manifest.attention,
        attention_window=manifest.attention_window,
        head=head,
        attention_dropout=attention_dropout,
        dtype=choose_dtype(dtype, str(device)),
        device=device,
    )
    backbone = _adapted(backbone, folder, lora, continue_last)
    if continue_last:
        record = manifest.replace(adapters=manifest.adapters[:-1])
        folder = EncoderFolder(record, folder.weights, folder.adapters[:-1], folder.tokenizer)
    if gradient_checkpointing:
        backbone.checkpoint_activations()
    return TrainableEncoder(folder, backbone)


def _adapted(backbone: Backbone, folder: EncoderFolder, lora: LoraSettings, continue_last: bool) -> Backbone:
    if not continue_last:
        adapters.load_merged(backbone, folder.adapters)
        adapters.attach(backbone, lora)
        return backbone
    if not folder.adapters:
        raise UserError("continue_last needs an encoder that has an adapter already; leave it out for a fresh one")
    adapters.load_merged(backbone, folder.adapters[:-1])
    adapters.attach_trained(backbone, folder.adapters[-1])
    return backbone


def create_decoder(config: Any) -> Backbone:
    """A causal decoder with fresh random weights and its head, for pretraining; `save_decoder` writes it."""
    return Backbone.create(config, attention="causal", head=True)


def open_decoder(reference: str | Path, *, dtype: str = "float32", device: str | torch.device = "cpu") -> Backbone:
    """A causal decoder with its head, all weights trainable, to pretrain further."""
    weights = references.resolve(reference)
    return Backbone.load(weights, attention="causal", head=True, dtype=choose_dtype(dtype, str(device)), device=device)


def save_decoder(backbone: Backbone, tokenizer: Any, path: str | Path) -> None:
    """Write a pretrained decoder as a plain transformers folder: model.safetensors, config.json, tokenizer files."""
    backbone.save_pretrained(Path(path))
    tokenizer.save_pretrained(str(path))
