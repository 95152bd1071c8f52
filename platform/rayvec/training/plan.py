"""Plan: what a run will hold in each GPU's memory, under each way of sharing it out. An estimate, not a measurement.

    weights      all parameters in their number type; ZeRO 3 shares them out, and gathers what it is computing with
    gradients    of the trained parameters; shared out from ZeRO 2 on
    optimizer    AdamW's two moments in fp32, and an fp32 master copy of the trained weights (but for ZeRO 0
                 under fp32); shared out from ZeRO 1 on
    buffers      DeepSpeed's reduce bucket, which is there whole however few weights are trained; under ZeRO 3 also the
                 gathered weights
    activations  what autograd keeps for the backward pass (footprint.py counts it), every text `max_length` long, plus
                 the widest gradients; with checkpointing each layer's input, and one layer computed again
    logits       of the masked positions that are computed at a time (mntp), or of all positions (pretrain)

Left out: CUDA's context and NCCL's buffers (about 1 GiB), fragmentation, temporaries of the optimizer's step, vectors
gathered from other ranks, evaluation while training. Logits and the layer computed again do not exist at the same
moment, and are added all the same. Texts shorter than `max_length` take less, in proportion.

Sources: ZeRO's shares are section 5 of Rajbhandari et al. 2020 (2 + 2 + 12 bytes a parameter), checked against what
DeepSpeed 0.19 holds after a step (tests/rayvec/training/test_plan.py) and allocates (its stage_1_and_2.py, stage3.py);
what activations and checkpointing cost is section 4 of Korthikanti et al. 2022, counted here tensor by tensor in place
of its formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayvec.training.stages import Contrastive, Mntp, Simcse, Supervised, TrainingConfig

if TYPE_CHECKING:
    from rayvec.training.footprint import Footprint
    from rayvec.training.shapes import Shape

GIB = 2**30
#: DeepSpeed's defaults, in numbers (deepspeed/runtime/zero/config.py).
REDUCE_BUCKET, MAX_LIVE = 500_000_000, 1_000_000_000
COLUMNS = ("weights", "gradients", "optimizer", "buffers", "activations", "logits", "total")


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU; `host`: of the machine's memory, for each worker."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    logits: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """All that is on the GPU."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.logits


@dataclass(frozen=True)
class Plan:
    """A stage on a model, and how it would be run; `memory` answers for a way of sharing and a number of workers."""

    config: TrainingConfig
    shape: Shape
    footprint: Footprint
    #: Bytes of a number: 2 in bf16, 4 in fp32.
    width: int

    def texts(self, workers: int) -> int:
        """Texts that one worker encodes in a step."""
        return math.ceil(self.config.batch_size / max(1, workers)) * views(self.config)

    def tokens(self, workers: int) -> int:
        """Tokens of one forward pass of one worker, every text as long as it may be."""
        stage, texts = self.config.stage, self.texts(workers)
        if isinstance(stage, Mntp):
            return math.ceil(texts * self.config.max_length / stage.accumulate)
        if isinstance(stage, Contrastive):
            texts = min(texts, stage.gradient_cache or texts)
        return texts * self.config.max_length

    def memory(self, workers: int, settings: Mapping[str, Any] | None) -> Memory:
        """Under DeepSpeed's settings, or without DeepSpeed."""
        activations, logits = self._activations(self.tokens(workers)), self._logits(self.tokens(workers))
        counts = self.footprint
        if settings is None:
            return Memory(counts.loaded_bytes, counts.trained_bytes, 2 * counts.trained_bytes, 0.0, activations, logits)
        zero: Mapping[str, Any] = settings.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        share = [1 / max(1, workers) if stage >= first else 1.0 for first in (3, 2, 1)]
        weights, gradients = counts.loaded_bytes * share[0], counts.trained * self.width * share[1]
        master = 4 if self.width == 2 or stage else 0  # ZeRO 0 under fp32 moves the weights themselves
        optimizer = counts.trained * (8 + master) * share[2]
        buffers = float(zero.get("reduce_bucket_size", REDUCE_BUCKET)) * self.width if stage else 0.0
        if stage == 3:
            buffers += min(counts.loaded, float(zero.get("stage3_max_live_parameters", MAX_LIVE))) * self.width
        host = 0.0
        if _offloads(zero, "offload_optimizer"):
            host, gradients, optimizer = host + gradients + optimizer, 0.0, 0.0
        if _offloads(zero, "offload_param"):
            host, weights = host + weights, 0.0
        return Memory(weights, gradients, optimizer, buffers, activations, logits, host)

    def _activations(self, tokens: int) -> float:
        counts = self.footprint.activations
        if counts is None:
            return math.nan
        kept = counts.kept_checkpointed + counts.layer if self.config.gradient_checkpointing else counts.kept
        return tokens * (kept + 2 * counts.widest)

    def _logits(self, tokens: int) -> float:
        """Logits in the model's type, their fp32 copy and the fp32 log-probabilities that cross-entropy keeps."""
        stage = self.config.stage
        positions: float = tokens
        if isinstance(stage, Contrastive):
            positions = 0
        elif isinstance(stage, Mntp):
            positions = min(stage.loss_chunk, stage.probability * tokens)
        return positions * self.footprint.vocabulary * (10 if self.width == 2 else 8)

    def lines(self, schemes: Mapping[str, Mapping[str, Any] | None], *, workers: int, chosen: str) -> Sequence[str]:
        """What is planned, and a table with a row for each way of sharing; `chosen` is that of the run itself."""
        counts, config = self.footprint, self.config
        others = 8 if workers != 8 else 16
        width = max(len(_marked(name, chosen)) for name in schemes)
        spread = f"with {others} workers"
        head = " ".join(f"{name:>11}" for name in COLUMNS)
        rows = [f"{'GiB a GPU':<{width}} {head} {spread:>15}"]
        for name, settings in schemes.items():
            memory = self.memory(workers, settings)
            cells = " ".join(f"{_gib(getattr(memory, column)):>11}" for column in COLUMNS)
            more = "–" if settings is None else _gib(self.memory(others, settings).total)
            host = f"  and {_gib(memory.host)} a worker in the machine's memory" if memory.host else ""
            rows.append(f"{_marked(name, chosen):<{width}} {cells} {more:>15}{host}")
        how = "gradient checkpointing" if config.gradient_checkpointing else "no gradient checkpointing"
        number = "bfloat16" if self.width == 2 else "float32"
        return [
            f"model    {self.shape.name} ({self.shape.source}): {counts.family}, {counts.layers} layers, hidden size "
            f"{counts.hidden:,}, vocabulary {counts.vocabulary:,}, {counts.published:,} parameters",
            f"trained  {counts.trained:,} of {counts.loaded:,} parameters that this stage loads "
            f"({counts.trained / counts.loaded:.2%}), {number}, {how}",
            f"batch    {self.texts(workers):,} texts a worker and step, up to {self.tokens(workers):,} tokens at a "
            f"time; workers: {workers}",
            "memory   estimated, texts at their longest; without CUDA's context, NCCL, fragmentation (1 to 2 GiB)",
            *rows,
        ]


def make_plan(config: TrainingConfig, shape: Shape, *, width: int, deepspeed: bool) -> Plan:
    """Build the stage on the meta device and count. width: bytes of a number. Raises UserError as `footprint` does."""
    import torch

    from rayvec.training.footprint import footprint

    dtype = torch.bfloat16 if width == 2 else torch.float32
    return Plan(config, shape, footprint(config, shape.config, dtype=dtype, mixed=deepspeed), width)


def views(config: TrainingConfig) -> int:
    """Texts that are encoded for each one of the batch: two views, or a query, its positive and hard negatives."""
    stage = config.stage
    if isinstance(stage, Supervised):
        return 2 + stage.hard_negatives
    return 2 if isinstance(stage, Simcse) else 1


def _offloads(zero: Mapping[str, Any], name: str) -> bool:
    return (zero.get(name) or {}).get("device", "none") != "none"


def _gib(count: float) -> str:
    return "?" if math.isnan(count) else f"{count / GIB:.2f}"


def _marked(name: str, chosen: str) -> str:
    return f"{name} (chosen)" if name == chosen else name
