"""Stages as torch modules: the model and its loss in one, so that whatever wraps it sees every gradient.

`module.batch_at(step)` is this rank's batch, in parts; the losses `module(part)` add up to the batch's, scaled so that
the mean over ranks is the loss of the global batch; `module.save(folder)` writes what the stage made. Knows encoders,
losses and collators. Knows no optimizer, no DeepSpeed, no Ray.
"""

# B examples of this rank, C columns (query, positive, negatives), N examples of all ranks, D dimensions.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayvec.data import collators
from rayvec.data.collators import ContrastiveBatch, MaskedBatch, MaskPolicy
from rayvec.data.examples import ExampleStore
from rayvec.data.mixing import FixedSizeBatches, TokenBudgetBatches
from rayvec.errors import UserError
from rayvec.losses.contrastive import alignment, false_negatives, info_nce, uniformity
from rayvec.losses.gather import gather_rows, most_over_ranks, rank, shares, sum_over_ranks, world_size
from rayvec.losses.masked_next_token import masked_next_token_loss
from rayvec.modeling import adapters
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.encoder import TOKEN_BUDGETS
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.trainable import open_for_training
from rayvec.training import pretraining
from rayvec.training.pretraining import StreamBatches, TokenRows
from rayvec.training.stages import Contrastive, Mntp, Pretrain, Simcse, Supervised, TrainingConfig

if TYPE_CHECKING:
    from rayvec.training.loop import Metrics

Loss = tuple[Tensor, "Metrics"]


class EncoderModule(nn.Module):
    """What the stages that train an encoder share."""

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
        #: What a person should know of how it trains, by name.
        self.facts = {"dropout_in": self.backbone.dropout_in} if self.backbone.dropout_in else {}
        if config.stage.lora is not None:
            self.facts["lora_targets"] = ", ".join(adapters.adapted(self.backbone))

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

    def batch_at(self, step: int) -> list[MaskedBatch]:
        """Every rank takes every world-th text of the global batch."""
        everybodys = self.batches(step)
        if len(everybodys) < world_size():
            raise UserError(f"step {step} has fewer texts than workers; raise batch_size or lower workers")
        examples = everybodys[rank() :: world_size()]
        texts, ids = self.store.texts(examples), self.store.ids(examples)
        batch = collators.mask_tokens(texts, self.policy, examples, ids, seed=self.config.seed, step=step)
        # Of few and long texts fewer parts; equally many on every rank.
        return batch.split(min(self.stage.accumulate, len(everybodys) // world_size()))

    def guess(self, texts: Sequence[str]) -> tuple[float, float]:
        """Loss (nats) and accuracy at masked tokens of texts (each to max_length), over all ranks; alike at each call.

        Every rank must call it, with the same texts.
        """
        tokenizer, device = self.encoder.tokenizer.tokenizer, self.backbone.device
        encoded = tokenizer(list(texts), truncation=True, max_length=self.config.max_length)["input_ids"]
        rows = TokenBatch.from_rows([row for row in encoded if len(row) > 1])
        ids = [""] * len(rows)
        batch = collators.mask_tokens(rows, self.policy, np.arange(len(rows)), ids, seed=self.config.seed, step=0)
        parts = batch.split(max(world_size(), -(-batch.tokens // TOKEN_BUDGETS.get(device.type, 4096))))
        own = parts[rank() :: world_size()]
        loss = accuracy = 0.0
        for number in range(most_over_ranks(len(own), device)):
            # A rank without a share guesses something all the same: under ZeRO 3 every forward pass is everybody's.
            part_loss, metrics = self(own[number] if number < len(own) else parts[0])
            if number < len(own):
                loss, accuracy = loss + float(part_loss), accuracy + metrics["masked_accuracy"]
        return sum_over_ranks(loss, device), sum_over_ranks(accuracy, device)

    def forward(self, batch: MaskedBatch) -> Loss:
        """Cross-entropy at the masked tokens, and the share that was guessed right."""
        device = self.backbone.device
        states_TD = self.backbone(self.pack(batch))
        masked = max(1.0, sum_over_ranks(float(batch.masked), device) / world_size())
        chunks = most_over_ranks(max(1, -(-len(batch.positions) // self.stage.loss_chunk)), device)
        result = masked_next_token_loss(
            states_TD,
            lambda states_mD: self.backbone.logits_at(states_mD, torch.arange(len(states_mD), device=device)),
            torch.from_numpy(batch.positions).to(device),
            torch.from_numpy(batch.labels).to(device),
            denominator=masked,
            chunks=chunks,
        )
        return result.loss, {"masked_accuracy": int(result.correct) / masked}


def mask_policy(tokenizer: Any, stage: Mntp, model: Any) -> MaskPolicy:
    """What is masked with what, for a tokenizer. Raises UserError when the mask token is not one token."""
    name = stage.mask_token or tokenizer.mask_token or "_"
    mask_id = tokenizer.convert_tokens_to_ids(name)
    if mask_id is None or (mask_id == tokenizer.unk_token_id and name != tokenizer.unk_token):
        raise UserError(f"mask token {name!r} is not in the vocabulary; name one that is with stage.mask_token")
    vocabulary = min(len(tokenizer), int(model.get_text_config().vocab_size))
    return MaskPolicy(stage.probability, stage.masking, int(mask_id), vocabulary, tuple(tokenizer.all_special_ids))


class ContrastiveModule(EncoderModule):
    """What SimCSE and the supervised stage share: columns of texts, vectors gathered over ranks, InfoNCE."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str, **options: Any) -> None:
        super().__init__(config, folder, device, **options)
        assert isinstance(config.stage, Contrastive)
        self.scale = config.stage.scale
        self.chunk = config.stage.gradient_cache
        self.dims = _dims(config.stage.matryoshka, self.encoder.folder.manifest.dim)
        if config.batch_size < world_size():
            raise UserError(f"batch_size {config.batch_size} is less than {world_size()} workers; change one")
        self.batches = FixedSizeBatches(self.store.sets, config.batch_size, config.seed)
        #: How many examples of a batch each rank takes.
        self.shares = shares(config.batch_size)

    def examples_at(self, step: int) -> np.ndarray:
        """This rank's examples: its slice of the global batch."""
        return np.array_split(self.batches(step), world_size())[rank()]

    def vectors(self, texts: TokenBatch) -> Tensor:
        """Vectors [n, D] in the order of the rows; by GradCache, `gradient_cache` texts at a time.

        GradCache (Gao et al. 2021) is checkpointing with texts as its segments: the first pass keeps nothing but the
        vectors, the backward pass encodes each chunk again, with the random state that it had, and lets go of it.
        """
        if self.chunk is None:
            return self._encode(texts)
        device = self.backbone.device
        order = np.argsort(-texts.lengths, kind="stable")  # alike lengths together: fewer kernels
        rows = _evenly(order, texts.lengths, -(-len(texts) // self.chunk))
        # Under ZeRO 3 every encoding is everybody's: ranks with fewer chunks encode a text for nothing.
        spare = [order[-1:]] * (most_over_ranks(len(rows), device) - len(rows))
        chunks = [texts.select(part) for part in rows + spare]
        # checkpoint keeps the random state of the devices that its tensors are on, and a TokenBatch holds none.
        here = torch.empty(0, device=device)
        vectors_BD = torch.cat([checkpoint(self._encode, part, here, use_reentrant=False) for part in chunks])
        nothing = vectors_BD[len(texts) :].sum() * 0.0
        return vectors_BD[torch.from_numpy(np.argsort(order)).to(device)] + nothing

    def _encode(self, texts: TokenBatch, here: Tensor | None = None) -> Tensor:
        del here
        return self.encoder.vectors(PackedBatch.from_tokens(texts, self.backbone.device))

    def forward(self, batch: ContrastiveBatch) -> Loss:
        """InfoNCE against the documents of all ranks, and how the vectors lie (Wang and Isola 2020)."""
        vectors_CBD = self.vectors(batch.texts).unflatten(0, (batch.width, -1))
        queries_BD = vectors_CBD[0]
        keys_CB = torch.from_numpy(batch.keys).to(queries_BD.device).unflatten(0, (batch.width, -1))
        documents_ND = self._columns_of_all_ranks(vectors_CBD[1:])
        size = queries_BD.shape[0]
        positives_B = sum(self.shares[: rank()]) + torch.arange(size, device=queries_BD.device)
        owners_CB = torch.full_like(keys_CB[1:], -1)
        owners_CB[0] = keys_CB[0]
        ignored_BN = false_negatives(
            keys_CB[0], positives_B, self._columns_of_all_ranks(keys_CB[1:]), self._columns_of_all_ranks(owners_CB)
        )
        results = [
            info_nce(queries_BD[:, :dim], documents_ND[:, :dim], positives_B, scale=self.scale, ignored_BN=ignored_BN)
            for dim in self.dims
        ]
        # Ranks may hold unequally many examples; the mean over ranks is to be the mean over the global batch.
        weight = size * world_size() / sum(self.shares)
        with torch.no_grad():
            spread = {
                "accuracy": float(results[0].accuracy) * weight,
                "alignment": float(alignment(queries_BD, vectors_CBD[1])),
                "uniformity": float(uniformity(queries_BD)),
            }
        return torch.stack([result.loss for result in results]).mean() * weight, spread

    def _columns_of_all_ranks(self, rows_CB: Tensor) -> Tensor:
        """[C, B, …] of this rank to [C * N, …]: all ranks' first column, then all ranks' second, and so on."""
        return gather_rows(rows_CB.transpose(0, 1).contiguous(), self.shares).transpose(0, 1).flatten(0, 1)


def _evenly(order: np.ndarray, lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Rows in `parts` runs (or fewer) of about equally many tokens, which is what memory goes by."""
    ends = np.cumsum(lengths[order])
    part_of = (ends - 1) * parts // ends[-1]
    return np.split(order, np.flatnonzero(np.diff(part_of)) + 1)


def _dims(matryoshka: Sequence[int], dim: int) -> tuple[int, ...]:
    """The whole vector first, then the shorter ones. Raises UserError when one is no shorter."""
    for shorter in matryoshka:
        if shorter >= dim:
            raise UserError(f"stage.matryoshka = {shorter}: the encoder's vectors have {dim} dimensions; ask for fewer")
    return (dim, *sorted(set(matryoshka), reverse=True))


class SimcseModule(ContrastiveModule):
    """Unsupervised SimCSE."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        assert isinstance(config.stage, Simcse)
        super().__init__(config, folder, device, attention_dropout=config.stage.attention_dropout)

    def batch_at(self, step: int) -> list[ContrastiveBatch]:
        """Each text twice."""
        examples = self.examples_at(step)
        return [collators.two_views(self.store.texts(examples), self.store.ids(examples))]

    def forward(self, batch: ContrastiveBatch) -> Loss:
        """InfoNCE between the views. Raises UserError when no dropout acts: then the loss would mean nothing."""
        loss, metrics = super().forward(batch)
        # All ranks decide alike: one that stopped alone would leave the others waiting.
        if self.training and sum_over_ranks(metrics["alignment"], self.backbone.device) < 1e-9:
            raise UserError(
                "both views of each text are the same: this model drops nothing in attention; raise stage.lora.dropout"
            )
        return loss, metrics


class SupervisedModule(ContrastiveModule):
    """Contrastive learning on pairs with hard negatives."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        assert isinstance(config.stage, Supervised)
        super().__init__(config, folder, device, continue_last=config.stage.continue_last)

    def batch_at(self, step: int) -> list[ContrastiveBatch]:
        """Queries, positives, hard negatives."""
        examples = self.examples_at(step)
        texts = [self.store.texts(examples, column) for column in range(self.store.width)]
        return [collators.columns(texts, self.store.ids(examples))]


class PretrainModule(nn.Module):
    """A decoder made from nothing, trained to predict each next token."""

    def __init__(self, config: TrainingConfig, folder: Path, device: str) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        assert isinstance(config.stage, Pretrain)
        if config.batch_size < world_size():
            raise UserError(f"batch_size {config.batch_size} is less than {world_size()} workers; change one")
        self.config = config
        self.facts: dict[str, str] = {}
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
        stream = np.memmap(folder / "stream.uint16", dtype=np.uint16, mode="r")
        self.model = pretraining.build_decoder(config.stage.decoder, self.tokenizer, config.seed)
        vectors = folder / "embeddings.npy"
        if vectors.exists():
            table: Any = self.model.get_input_embeddings()
            table.weight.data.copy_(torch.from_numpy(np.load(vectors)))
        nn.Module.to(self.model, device)
        self.batches = StreamBatches(stream, config.batch_size, config.max_length, config.seed)

    def batch_at(self, step: int) -> list[TokenRows]:
        """This rank's rows of the global batch."""
        rows = self.batches(step)
        mine = slice(rank(), None, world_size())
        ids_BT = rows.input_ids_BT[mine]
        return [TokenRows(ids_BT.to(self.model.device), ids_BT.numel(), rows.document_ids[mine])]

    def forward(self, batch: TokenRows) -> Loss:
        """Mean cross-entropy of the next tokens over all ranks' rows."""
        loss, metrics = pretraining.causal_loss(self.model, batch)
        return loss * (len(batch.input_ids_BT) * world_size() / self.config.batch_size), metrics

    def save(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write a plain transformers decoder folder."""
        del training
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
