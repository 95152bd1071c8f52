"""Training an 8B decoder on one GPU, ours beside the reference's settings: python benchmarks/gpu_training.py

Random weights of Llama-3-8B's shape in bf16, LoRA r 16, the published batches; a step is forward, backward and AdamW.

    MNTP    32 x 512 tokens, a fifth masked     reference: full gradient checkpointing, logits everywhere, sdpa
                                                ours: nothing computed twice, logits at masked positions, varlen kernel
    SimCSE  128 sentences twice, mean 28        reference: padded to 128, full gradient checkpointing, sdpa
                                                ours: one pack; attention dropout 0.3, or LoRA dropout alone

The varlen kernel has no dropout: where attention drops weights, the pack goes through padded SDPA inside attention
alone, and the table says so. The share of the peak is 4 x weights x real tokens a second over the rate of an 8192^3
product measured here first: what is computed twice, the head and the padding count as nothing. Needs torch,
transformers and peft; no Ray, DeepSpeed, FAISS or pydantic. `--tiny --device cpu` runs all of it on a small model.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.harness import in_words, machine, write_json
from benchmarks.readings import (
    Readings,
    agreement,
    masked_batch,
    mntp_ours,
    mntp_theirs,
    require_agreement,
    sentences,
    simcse_ours,
    simcse_theirs,
)
from rayvec.modeling.attention import Form, kernel_for

#: Microbatches of our MNTP step that are tried in turn, until one fits into memory without computing anything twice.
SPLITS = (1, 2, 4, 8)
LORA_DROPOUT = 0.05
ATTENTION_DROPOUT = 0.3


@dataclass(frozen=True)
class Shape:
    """The model and the batches."""

    hidden: int = 4096
    intermediate: int = 14336
    layers: int = 32
    heads: int = 32
    key_heads: int = 8
    vocabulary: int = 128_256
    mntp: tuple[int, int] = (32, 512)
    simcse: tuple[int, float, int] = (128, 28.0, 128)  # texts, mean tokens, the limit they are padded to
    product: int = 8192

    def config(self) -> Any:
        """As transformers has it."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=8192,
        )


LLAMA_3_8B = Shape()
TINY = Shape(64, 96, 2, 4, 2, 512, mntp=(8, 16), simcse=(6, 8.0, 24), product=128)


@dataclass
class Variant:
    """One way to make a step."""

    stage: str
    name: str
    packed: bool
    checkpointing: bool
    attention_dropout: float
    tokens: int  # real ones, without padding
    losses: Sequence[Callable[[], Tensor]]  # one a microbatch; their sum is the batch's
    seconds: list[float] = field(default_factory=list)
    peak: int = 0

    def enter(self, readings: Readings) -> None:
        """Set the model up for it."""
        if self.packed:
            readings.read_packed()
        else:
            readings.read_padded()
        readings.checkpoint_activations(self.checkpointing)
        readings.set_dropout(attention=self.attention_dropout, lora=LORA_DROPOUT)

    def kernel(self, readings: Readings) -> str:
        """Which attention kernel serves it."""
        if not self.packed:
            return "transformers' sdpa"
        config, device = readings.backbone.config, readings.backbone.device
        head = config.hidden_size // config.num_attention_heads
        query = torch.empty(1, 1, head, device=device, dtype=readings.backbone.dtype)
        return kernel_for(query, Form(False, None, self.attention_dropout, None, None, None))


@dataclass
class Bench:
    """The model, its optimizer and the clock."""

    readings: Readings
    device: str

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.readings.parameters, lr=1e-6)

    def step(self, variant: Variant) -> None:
        """Forward, backward, AdamW."""
        for loss in variant.losses:
            loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def fits(self, variant: Variant) -> bool:
        """Whether a step of it fits into the GPU's memory; the first step also warms up."""
        variant.enter(self.readings)
        try:
            self.step(variant)
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            return False
        finally:
            self.tidy()
        return True

    def time(self, variant: Variant, steps: int) -> None:
        """Add the seconds of some steps, after one that does not count, and the peak of memory."""
        variant.enter(self.readings)
        self.tidy()
        self.step(variant)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(steps):
            self.wait()
            started = time.perf_counter()
            self.step(variant)
            self.wait()
            variant.seconds.append(time.perf_counter() - started)
        if self.device == "cuda":
            variant.peak = max(variant.peak, torch.cuda.max_memory_allocated())

    def wait(self) -> None:
        """Until the GPU is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def tidy(self) -> None:
        """Give freed memory back, so that variants start alike."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def product_rate(size: int, device: str) -> float:
    """FLOP/s of a size^3 product of random matrices, bf16 on a GPU: the median of ten."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for number in range(13):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def mntp_variants(bench: Bench, shape: Shape) -> Iterator[Variant]:
    """The reference's settings, ours with them, and ours with as few microbatches as fit."""
    batch = masked_batch(*shape.mntp, shape.vocabulary)
    readings, tokens = bench.readings, batch.tokens
    yield Variant("mntp", "reference", False, True, 0.0, tokens, [mntp_theirs(readings, batch)])
    yield Variant("mntp", "ours, checkpointing", True, True, 0.0, tokens, [mntp_ours(readings, batch)])
    for parts in SPLITS:
        losses = [mntp_ours(readings, part) for part in batch.split(parts)]
        variant = Variant("mntp", f"ours, {parts} microbatch(es)", True, False, 0.0, tokens, losses)
        if bench.fits(variant):
            yield variant
            return


def simcse_variants(bench: Bench, shape: Shape) -> Iterator[Variant]:
    """Padded to the limit, padded to the longest, packed under attention dropout, packed under LoRA dropout alone."""
    texts, mean, limit = shape.simcse
    batch = sentences(texts, mean, limit, shape.vocabulary)
    readings, tokens = bench.readings, 2 * int(batch.lengths.sum())
    drop, longest = ATTENTION_DROPOUT, int(batch.lengths.max())
    yield Variant(
        "simcse", f"reference, padded to {limit}", False, True, drop, tokens, [simcse_theirs(readings, batch, limit)]
    )
    yield Variant(
        "simcse", f"padded to {longest}", False, True, drop, tokens, [simcse_theirs(readings, batch, longest)]
    )
    for dropout, words in ((drop, "ours"), (0.0, "ours, LoRA dropout alone")):
        for checkpointing in (False, True):
            variant = Variant("simcse", words, True, checkpointing, dropout, tokens, [simcse_ours(readings, batch)])
            if bench.fits(variant):
                yield variant
                break


def check(readings: Readings, shape: Shape, exact: bool) -> dict[str, dict[str, float]]:
    """Without dropout both ways give one loss and one gradient; in bf16 as nearly as roundings let them."""
    readings.checkpoint_activations(True)
    readings.set_dropout(attention=0.0, lora=0.0)
    masked = masked_batch(min(8, shape.mntp[0]), shape.mntp[1], shape.vocabulary)
    texts = sentences(min(32, shape.simcse[0]), *shape.simcse[1:], shape.vocabulary)
    limit = shape.simcse[2]
    found = {
        "mntp": agreement(readings, mntp_ours(readings, masked), mntp_theirs(readings, masked)),
        "simcse": agreement(readings, simcse_ours(readings, texts), simcse_theirs(readings, texts, limit)),
    }
    for values in found.values():
        require_agreement(values, **({} if exact else {"loss": 2e-2, "gradient": 0.5}))
    return found


def measure(shape: Shape, device: str, rounds: int, steps: int, seconds: float) -> dict[str, Any]:
    """All figures. A stage's rounds end early when half of `seconds` is over; its variants always have one round."""
    started = time.monotonic()
    there, rate = machine(), product_rate(shape.product, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    readings = Readings.build(shape.config(), device=device, dtype=dtype, lora_dropout=LORA_DROPOUT)
    bench = Bench(readings, device)
    print(f"model ready after {time.monotonic() - started:.0f} s; {shape.product}^3 product: {rate / 1e12:.3g} TFLOP/s")
    found = check(readings, shape, exact=device == "cpu")
    variants: list[Variant] = []
    for number, make in enumerate((mntp_variants, simcse_variants), 1):
        mine = list(make(bench, shape))
        for turn in range(rounds):
            if turn and time.monotonic() - started > seconds * number / 2:
                break
            for variant in mine:
                bench.time(variant, steps)
                # Told at once: a later variant may fail.
                print(f"{variant.stage}, {variant.name}: {statistics.median(variant.seconds):.3f} s a step", flush=True)
        variants += mine
    return {
        "machine": there,
        "weights": readings.size,
        "trained": sum(p.numel() for p in readings.parameters),
        "product_tflops": rate / 1e12,
        "agreement": found,
        "variants": [row(variant, readings, rate, variants) for variant in variants],
        "seconds": round(time.monotonic() - started, 1),
    }


def row(variant: Variant, readings: Readings, rate: float, variants: Sequence[Variant]) -> dict[str, Any]:
    """A variant's figures; `ratio` is against the stage's first variant, the reference's settings."""
    seconds = statistics.median(variant.seconds)
    reference = next(other for other in variants if other.stage == variant.stage)
    return {
        "stage": variant.stage,
        "variant": variant.name,
        "attention": variant.kernel(readings),
        "checkpointing": variant.checkpointing,
        "microbatches": len(variant.losses),
        "tokens": variant.tokens,
        "steps": len(variant.seconds),
        "seconds": seconds,
        "tokens_per_second": variant.tokens / seconds,
        "share_of_product_rate": 4 * readings.size * variant.tokens / seconds / rate,
        "peak_gb": variant.peak / 1e9,
        "ratio": statistics.median(reference.seconds) / seconds,
    }


@click.command(help=__doc__)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="a small model, to try every path")
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=4, show_default=True, help="timed steps of a variant in a round")
@click.option("--seconds", default=400.0, show_default=True, help="start no further round after so long")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(device: str, tiny: bool, rounds: int, steps: int, seconds: float, json_path: Path | None) -> None:
    result = measure(TINY if tiny else LLAMA_3_8B, device, rounds, steps, seconds)
    write_json(json_path, result)
    for stage, found in result["agreement"].items():
        print(f"{stage}: loss {found['loss_ours']:.5f}, off by {found['loss_difference']:.1e}; ", end="")
        print(f"gradients off by {found['gradient_difference']:.1e}")
    print(in_words(result["machine"]))
    print(f"{result['weights']:,} weights, {result['trained']:,} trained; {result['seconds']:.0f} s in all")
    print(f"{'stage':<8}{'variant':<26}{'attention':<20}{'s/step':>8}{'tokens/s':>10}{'peak':>7}{'GB':>7}{'ratio':>8}")
    for line in result["variants"]:
        print(
            f"{line['stage']:<8}{line['variant']:<26}{line['attention']:<20}{line['seconds']:>8.3f}"
            f"{line['tokens_per_second']:>10,.0f}{line['share_of_product_rate']:>7.1%}{line['peak_gb']:>7.1f}"
            f"{line['ratio']:>7.2f}x"
        )


if __name__ == "__main__":
    main()
