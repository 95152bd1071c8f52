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
from rayvec.fingerprint import Fingerprint
from rayvec.modeling import adapters, export, references
from rayvec.modeling.adapters import LoraSettings
from rayvec.modeling.backbone import Backbone, choose_dtype
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.folder import EncoderFolder, adapter_names, open_encoder, write_folder
from rayvec.modeling.pooling import pool
from rayvec.modeling.text_tokenizer import TextTokenizer
from rayvec.modeling.tokens import TokenBatch


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
        """Write the encoder folder after this stage: the adapters before it, and its own. rayvec.json comes last.

        Where all weights were trained, the folder holds the whole model and needs no base.
        """
        path, old = Path(path), self.folder.manifest
        if not hasattr(self.backbone.decoder, "peft_config"):
            export.write(TextEncoder(self.folder, self.backbone), path, stage=stage, training=training)
            return
        name = f"adapters/{len(old.adapters) + 1}-{stage}"
        record = adapters.save(self.backbone, path / name, stage=stage, base_lineage=old.lineage, base=old.base)
        new = old.with_adapter(stage, record.sha256, training)
        assert adapter_names(new)[-1] == name
        config = self.backbone.saved_config()
        write_folder(path, new, self.tokenizer, config, [*self.folder.adapters, path / name])


def open_for_training(
    reference: str | Path,
    *,
    lora: LoraSettings | None,
    head: bool = False,
    attention_dropout: float | None = None,
    continue_last: bool = False,
    gradient_checkpointing: bool = False,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    **settings: Any,
) -> TrainableEncoder:
    """Open a decoder or an encoder folder for the next stage: adapters so far are merged, a fresh LoRA is put on.

    Without `lora` all weights of the decoder train. A folder that holds a whole model (a merged export, or what a stage
    without LoRA made) is a base like any other, read as its manifest says. `continue_last` trains the last adapter
    further instead (the paper's supervised stage from SimCSE's LoRA). `head` keeps the vocabulary head, frozen, for
    MNTP. `settings` change how texts are read: attention, attention_window, pooling, prompts, max_length, normalize.
    """
    folder = open_encoder(reference)
    if folder.manifest.merged:
        folder = _as_base(reference, folder)
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


def _as_base(reference: str | Path, folder: EncoderFolder) -> EncoderFolder:
    """The whole model of a folder as the base of what comes next; its lineage begins with these weights."""
    manifest = folder.manifest.replace(
        base=references.canonical(reference),
        base_sha256=references.weights_sha256(folder.weights),
        adapters=(),
        merged=False,
        files={},
    )
    return EncoderFolder(manifest, folder.weights, (), folder.tokenizer)


def _adapted(backbone: Backbone, folder: EncoderFolder, lora: LoraSettings | None, continue_last: bool) -> Backbone:
    if not continue_last:
        adapters.load_merged(backbone, folder.adapters)
        if lora is None:
            train_all(backbone)
        else:
            adapters.attach(backbone, lora)
        return backbone
    if not folder.adapters:
        raise UserError("continue_last needs an encoder that has an adapter already; leave it out for a fresh one")
    adapters.load_merged(backbone, folder.adapters[:-1])
    adapters.attach_trained(backbone, folder.adapters[-1])
    return backbone


def train_all(backbone: Backbone) -> None:
    """Every weight of the decoder trains; the head stays as it is, unless it is the embedding table itself."""
    if backbone.head is not None:
        backbone.head.requires_grad_(False)
    backbone.decoder.requires_grad_(True)


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
