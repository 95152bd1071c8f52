"""Stages as torch modules: the model and its loss in one, so that whatever wraps it sees every gradient.

`module.batch_at(step)` is this rank's batch; `module(batch)` its loss, scaled so that the mean over ranks is the loss
of the global batch; `module.save(folder)` writes what the stage made. Knows encoders, losses and collators. Knows no
optimizer, no DeepSpeed, no Ray.
"""

# B examples of this rank, C columns (query, positive, negatives), N examples of all ranks, D dimensions.

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rayvec.data import collators
from rayvec.data.collators import ContrastiveBatch, MaskedBatch, MaskPolicy
from rayvec.data.examples import ExampleStore
from rayvec.data.mixing import FixedSizeBatches, TokenBudgetBatches
from rayvec.errors import UserError
from rayvec.losses.contrastive import alignment, false_negatives, info_nce, uniformity
from rayvec.losses.gather import gather_rows, rank, sum_over_ranks, world_size
from rayvec.losses.masked_next_token import masked_next_token_loss
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.trainable import open_for_training
from rayvec.training import pretraining
from rayvec.training.pretraining import StreamBatches, TokenRows
from rayvec.training.stages import Mntp, Pretrain, Simcse, Supervised, TrainingConfig

if TYPE_CHECKING:
    from rayvec.training.loop import Metrics

Loss = tuple[Tensor, "Metrics"]


class EncoderModule(nn.Module):
    """What the stages that train a LoRA on an encoder share."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str, **options: Any) -> None:
        super().__init__()
        assert not isinstance(config.stage, Pretrain)
        self.config = config
        self.store = ExampleStore(folder)
        options |= config.readings
        self.encoder = open_for_training(
            config.start,
            lora=config.stage.lora,
            gradient_checkpointing=config.gradient_checkpointing,
            dtype=config.dtype,
            device=device,
            **options,
        )
        self.backbone = self.encoder.backbone  # registered, so that its parameters are this module's

    def pack(self, batch: MaskedBatch | ContrastiveBatch) -> PackedBatch:
        """The batch's texts on the model's device."""
        return PackedBatch.from_tokens(batch.texts, self.backbone.device)

    def save(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write the encoder folder."""
        self.encoder.save(folder, stage=self.config.stage.kind, training=training)


class MntpModule(EncoderModule):
    """Masked next token prediction."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        super().__init__(config, folder, device, head=True)
        assert isinstance(config.stage, Mntp)
        self.stage = config.stage
        self.policy = mask_policy(self.encoder.tokenizer.tokenizer, self.stage, self.backbone.config)
        self.batches = TokenBudgetBatches(self.store.lengths(), config.batch_size * config.max_length, config.seed)

    def batch_at(self, step: int) -> MaskedBatch:
        """Every rank takes every world-th text of the global batch."""
        examples = self.batches(step)[rank() :: world_size()]
        if len(examples) == 0:
            raise UserError(f"step {step} has fewer texts than workers; raise batch_size or lower workers")
        texts, ids = self.store.texts(examples), self.store.ids(examples)
        return collators.mask_tokens(texts, self.policy, examples, ids, seed=self.config.seed, step=step)

    def forward(self, batch: MaskedBatch) -> Loss:
        """Cross-entropy at the masked tokens, and the share that was guessed right."""
        device = self.backbone.device
        states_TD = self.backbone(self.pack(batch))
        masked = max(1.0, sum_over_ranks(float(len(batch.positions)), device) / world_size())
        result = masked_next_token_loss(
            states_TD,
            lambda states_mD: self.backbone.logits_at(states_mD, torch.arange(len(states_mD), device=device)),
            torch.from_numpy(batch.positions).to(device),
            torch.from_numpy(batch.labels).to(device),
            denominator=masked,
            chunk=self.stage.loss_chunk,
        )
        return result.loss, {"masked_accuracy": int(result.correct) / masked}


def mask_policy(tokenizer: Any, stage: Mntp, model: Any) -> MaskPolicy:
    """What is masked with what, for a tokenizer. Raises UserError when the mask token is not one token."""
    name = stage.mask_token or tokenizer.mask_token or "_"
    mask_id = tokenizer.convert_tokens_to_ids(name)
    if mask_id is None or mask_id == tokenizer.unk_token_id:
        raise UserError(f"mask token {name!r} is not in the vocabulary; name one that is with stage.mask_token")
    vocabulary = min(len(tokenizer), int(model.get_text_config().vocab_size))
    return MaskPolicy(stage.probability, stage.masking, int(mask_id), vocabulary, tuple(tokenizer.all_special_ids))


class ContrastiveModule(EncoderModule):
    """What SimCSE and the supervised stage share: columns of texts, vectors gathered over ranks, InfoNCE."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str, **options: Any) -> None:
        super().__init__(config, folder, device, **options)
        assert isinstance(config.stage, Simcse | Supervised)
        self.scale = config.stage.scale
        if config.batch_size % world_size():
            raise UserError(f"batch_size {config.batch_size} does not divide into {world_size()} workers; change one")
        self.batches = FixedSizeBatches(self.store.sets, config.batch_size, config.seed)

    def examples_at(self, step: int) -> np.ndarray:
        """This rank's examples: its slice of the global batch."""
        return np.array_split(self.batches(step), world_size())[rank()]

    def forward(self, batch: ContrastiveBatch) -> Loss:
        """InfoNCE against the documents of all ranks, and how the vectors lie (Wang and Isola 2020)."""
        vectors_CBD = self.encoder.vectors(self.pack(batch)).unflatten(0, (batch.width, -1))
        queries_BD = vectors_CBD[0]
        keys_CB = torch.from_numpy(batch.keys).to(queries_BD.device).unflatten(0, (batch.width, -1))
        documents_ND = _columns_of_all_ranks(vectors_CBD[1:])
        size = queries_BD.shape[0]
        positives_B = rank() * size + torch.arange(size, device=queries_BD.device)
        owners_CB = torch.full_like(keys_CB[1:], -1)
        owners_CB[0] = keys_CB[0]
        ignored_BN = false_negatives(
            keys_CB[0], positives_B, _columns_of_all_ranks(keys_CB[1:]), _columns_of_all_ranks(owners_CB)
        )
        result = info_nce(queries_BD, documents_ND, positives_B, scale=self.scale, ignored_BN=ignored_BN)
        with torch.no_grad():
            spread = {
                "accuracy": float(result.accuracy),
                "alignment": float(alignment(queries_BD, vectors_CBD[1])),
                "uniformity": float(uniformity(queries_BD)),
            }
        return result.loss, spread


def _columns_of_all_ranks(rows_CB: Tensor) -> Tensor:
    """[C, B, …] of this rank to [C * N, …]: all ranks' first column, then all ranks' second, and so on."""
    return gather_rows(rows_CB.transpose(0, 1).contiguous()).transpose(0, 1).flatten(0, 1)


class SimcseModule(ContrastiveModule):
    """Unsupervised SimCSE."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        assert isinstance(config.stage, Simcse)
        super().__init__(config, folder, device, attention_dropout=config.stage.attention_dropout)

    def batch_at(self, step: int) -> ContrastiveBatch:
        """Each text twice."""
        examples = self.examples_at(step)
        return collators.two_views(self.store.texts(examples), self.store.ids(examples))

    def forward(self, batch: ContrastiveBatch) -> Loss:
        """InfoNCE between the views. Raises UserError when no dropout acts: then the loss would mean nothing."""
        loss, metrics = super().forward(batch)
        if self.training and metrics["alignment"] < 1e-9:
            raise UserError(
                "both views of each text are the same: this model drops nothing in attention; raise stage.lora.dropout"
            )
        return loss, metrics


class SupervisedModule(ContrastiveModule):
    """Contrastive learning on pairs with hard negatives."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        assert isinstance(config.stage, Supervised)
        super().__init__(config, folder, device, continue_last=config.stage.continue_last)

    def batch_at(self, step: int) -> ContrastiveBatch:
        """Queries, positives, hard negatives."""
        examples = self.examples_at(step)
        texts = [self.store.texts(examples, column) for column in range(self.store.width)]
        return collators.columns(texts, self.store.ids(examples))


class PretrainModule(nn.Module):
    """A decoder made from nothing, trained to predict each next token."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        assert isinstance(config.stage, Pretrain)
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
        stream = np.memmap(folder / "stream.uint16", dtype=np.uint16, mode="r")
        self.model = pretraining.build_decoder(config.stage.decoder, self.tokenizer, config.seed)
        vectors = folder / "embeddings.npy"
        if vectors.exists():
            table: Any = self.model.get_input_embeddings()
            table.weight.data.copy_(torch.from_numpy(np.load(vectors)))
        nn.Module.to(self.model, device)
        self.batches = StreamBatches(stream, config.batch_size, config.max_length, config.seed)

    def batch_at(self, step: int) -> TokenRows:
        """This rank's rows of the global batch."""
        rows = self.batches(step)
        mine = slice(rank(), None, world_size())
        ids_BT = rows.input_ids_BT[mine]
        return TokenRows(ids_BT.to(self.model.device), ids_BT.numel(), rows.document_ids[mine])

    def forward(self, batch: TokenRows) -> Loss:
        """Mean cross-entropy of the next tokens; every rank has equally many."""
        return pretraining.causal_loss(self.model, batch)

    def save(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write a plain transformers decoder folder."""
        del training
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
