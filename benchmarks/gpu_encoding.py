"""Encoding with an 8B decoder on one GPU, ours beside padded batches: python benchmarks/gpu_encoding.py

Random weights of Llama-3-8B's shape in bf16, bidirectional, no head; texts of random tokens, 130 in the mean (sigma
0.8), cut at 512; mean pooling, vectors on the host at the end.

    arrival     plain transformers (sdpa), 32 texts a batch as they come, padded to the longest
    sorted      the same, sorted by length first (as sentence-transformers and llm2vec do)
    packed      ours: packs of 8,192, 16,384 or 32,768 tokens, varlen kernel

Vectors must agree with plain transformers on one text at a time before a time counts. Real tokens count, padding does
not; the share of the peak is (2 x weights + attention) x tokens a second over the rate of an 8192^3 product measured
here first. Needs torch and transformers alone. `--tiny --device cpu` runs all of it on a small model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_training import LLAMA_3_8B, TINY, Shape, product_rate
from benchmarks.harness import in_words, machine, write_json
from benchmarks.readings import padded, random_model
from rayvec.modeling.attention import NAME
from rayvec.modeling.backbone import Backbone, prepare
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.batching_plan import plan_batches
from rayvec.modeling.pooling import pool
from rayvec.modeling.tokens import TokenBatch

BATCH = 32
BUDGETS = (8192, 16384, 32768)
Encode = Callable[[TokenBatch], Tensor]


def documents(count: int, mean: float, longest: int, vocabulary: int) -> TokenBatch:
    """Random tokens in texts of log-normal lengths, sigma 0.8."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.rint(generator.lognormal(np.log(mean) - 0.32, 0.8, count)), 4, longest).astype(int)
    return TokenBatch.from_rows([generator.integers(5, vocabulary, length) for length in lengths])


def encode_packed(backbone: Backbone, texts: TokenBatch, budget: int) -> Tensor:
    """As `TextEncoder.encode_tokens`: fp32 [n, D] on the host."""
    backbone.use_packed_kernel()
    result = torch.empty(len(texts), backbone.dim)
    plans = list(plan_batches(texts.lengths, budget))
    vectors = []
    for rows in plans:
        packed = PackedBatch.from_tokens(texts.select(rows), backbone.device)
        vectors.append(pool("mean", backbone.hidden_states(packed), packed))
    for rows, vectors_BD in zip(plans, vectors, strict=True):
        result[torch.from_numpy(rows)] = vectors_BD.cpu()
    return result


def encode_padded(backbone: Backbone, texts: TokenBatch, batches: Iterable[np.ndarray]) -> Tensor:
    """Plain transformers over padded batches of rows: fp32 [n, D] on the host."""
    backbone.decoder.set_attn_implementation("sdpa")
    result = torch.empty(len(texts), backbone.dim)
    for rows in batches:
        batch = texts.select(rows)
        ids_BL, mask_BL = (part.to(backbone.device) for part in padded(batch, int(batch.lengths.max())))
        states_BLD = backbone.decoder(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        weights_BL1 = mask_BL.unsqueeze(-1).float()
        vectors_BD = (states_BLD.float() * weights_BL1).sum(1) / weights_BL1.sum(1)
        result[torch.from_numpy(rows)] = torch.nn.functional.normalize(vectors_BD, dim=-1).cpu()
    return result


def in_batches(order: np.ndarray) -> list[np.ndarray]:
    """Rows by 32, in this order."""
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def lowest_cosine(backbone: Backbone, texts: TokenBatch, ours: Encode) -> float:
    """Against one text at a time, which needs no padding."""
    single = encode_padded(backbone, texts, [np.array([row]) for row in range(len(texts))])
    return float((ours(texts) * single).sum(1).min())


@torch.inference_mode()
def measure(shape: Shape, device: str, texts: int, mean: float, longest: int, rounds: int) -> dict[str, Any]:
    """All figures; variants alternate, after one short pass each."""
    started = time.monotonic()
    there, rate = machine(), product_rate(shape.product, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = random_model(prepare(shape.config(), "bidirectional", "keep", None), device=device, dtype=dtype)
    backbone = Backbone(model.get_decoder()).eval()
    assert backbone.config._attn_implementation == NAME
    size = sum(p.numel() for name, p in backbone.decoder.named_parameters() if "embed" not in name)
    print(f"model ready after {time.monotonic() - started:.0f} s; {shape.product}^3 product: {rate / 1e12:.3g} TFLOP/s")
    corpus = documents(texts, mean, longest, shape.vocabulary)
    variants: dict[str, Encode] = {
        "arrival": lambda batch: encode_padded(backbone, batch, in_batches(np.arange(len(batch)))),
        "sorted": lambda batch: encode_padded(backbone, batch, in_batches(np.argsort(-batch.lengths, kind="stable"))),
        **{f"packed {budget}": lambda batch, b=budget: encode_packed(backbone, batch, b) for budget in BUDGETS},  # type: ignore[misc]
    }
    few = corpus.select(slice(0, min(64, texts)))
    cosines = {name: lowest_cosine(backbone, few, encode) for name, encode in variants.items()}
    floor = 0.9999 if device == "cpu" else 0.999
    if min(cosines.values()) < floor:
        raise SystemExit(f"vectors differ (cosine under {floor}), so times mean nothing: {cosines}")
    for encode in variants.values():  # the longest pack first: whatever is made once is made here
        encode(corpus.select(slice(0, min(512, texts))))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, encode in variants.items():
            begun = time.perf_counter()
            encode(corpus)
            seconds[name].append(time.perf_counter() - begun)
    lengths = corpus.lengths.astype(np.float64)
    attention = 4 * shape.layers * shape.hidden * float((lengths**2).sum())
    work = 2 * size * lengths.sum() + attention
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "variant": name,
            "seconds": medians[name],
            "tokens_per_second": float(lengths.sum()) / medians[name],
            "texts_per_second": texts / medians[name],
            "share_of_product_rate": work / medians[name] / rate,
            "cosine": cosines[name],
            "ratio": {other: medians[other] / medians[name] for other in ("arrival", "sorted")},
        }
        for name in variants
    ]
    return {
        "machine": there,
        "weights": size,
        "texts": texts,
        "tokens": int(lengths.sum()),
        "product_tflops": rate / 1e12,
        "variants": rows,
        "seconds": round(time.monotonic() - started, 1),
    }


@click.command(help=__doc__)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="a small model and few texts, to try every path")
@click.option("--texts", default=3000, show_default=True)
@click.option("--mean", default=130.0, show_default=True, help="tokens of a text")
@click.option("--longest", default=512, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(device: str, tiny: bool, texts: int, mean: float, longest: int, rounds: int, json_path: Path | None) -> None:
    shape = TINY if tiny else LLAMA_3_8B
    if tiny:
        texts, mean, longest = 40, 12.0, 48
    result = measure(shape, device, texts, mean, longest, rounds)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(
        f"{result['weights']:,} weights; {texts:,} texts, {result['tokens']:,} tokens; {result['seconds']:.0f} s in all"
    )
    print(f"{'variant':<16}{'s':>9}{'tokens/s':>10}{'texts/s':>9}{'peak':>7}{'cosine':>9}{'arrival':>9}{'sorted':>8}")
    for row in result["variants"]:
        print(
            f"{row['variant']:<16}{row['seconds']:>9.2f}{row['tokens_per_second']:>10,.0f}"
            f"{row['texts_per_second']:>9,.0f}{row['share_of_product_rate']:>7.1%}{row['cosine']:>9.5f}"
            f"{row['ratio']['arrival']:>8.2f}x{row['ratio']['sorted']:>7.2f}x"
        )


if __name__ == "__main__":
    main()
