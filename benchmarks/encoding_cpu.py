"""Encoding on one CPU thread, ours beside other libraries: python benchmarks/encoding_cpu.py

A Llama of 6 layers of 512 with random weights, bidirectional, no head; texts of words of the embedded encoder's
tokenizer, log-normal lengths (130 tokens in the mean, sigma 0.8), cut at 512; mean pooling. All begin with texts and
end with float32 vectors of the same folder (our merged export):

    arrival     a loop over plain transformers (sdpa): 32 texts a batch as they come, padded to the longest
    st          sentence-transformers' encode, 32 texts a batch, which sorts by length first
    ours        TextEncoder, float32: packs sorted by length, no padding
    int8        TextEncoder, dtype int8
    layers      the linear layers of ours alone, on as many tokens at a time: what is left when all else costs nothing

Vectors must agree (cosine 0.9999, int8 0.995) before a time counts. The share of the product rate is 2 x weights x
tokens over CPU seconds and the rate of a float32 product of 2048^3 taken in each round (torch's own, which is MKL's);
attention is not counted as work there, and is in the column beside it (4 x width x layers x the sum of the squared
lengths). Texts are few in the warming up, since a pass takes minutes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.harness import Timing, in_words, machine, ratio, write_json

BATCH = 32
FLOORS = {"arrival": 0.9999, "st": 0.9999, "int8": 0.995}
TOKENIZER = Path(__file__).resolve().parents[1] / "platform/rayvec/assets/tiny-encoder"
Encode = Callable[[Sequence[str]], np.ndarray]


def build(folder: Path, hidden: int, layers: int, longest: int) -> Path:
    """The merged folder that all of them load."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    from rayvec.modeling.encoder import TextEncoder

    base = folder / "base"
    base.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, base)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        vocab_size=len(AutoTokenizer.from_pretrained(base)),
        max_position_embeddings=longest,
    )
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(base)
    encoder = TextEncoder.from_decoder(base, max_length=longest, device="cpu")
    encoder.save(folder / "encoder", merged=True)
    return folder / "encoder"


def documents(folder: Path, count: int, mean: float, longest: int) -> list[str]:
    """Texts of random whole words, each a token of the tokenizer; a few are cut in two by it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = sorted(tokenizer.get_vocab())
    words = [piece[1:] for piece in pieces if piece[0] == "Ġ" and piece[1:].isascii() and piece[1:].isalpha()]
    generator = np.random.default_rng(0)
    lengths = np.clip(np.rint(generator.lognormal(np.log(mean) - 0.32, 0.8, count)), 4, longest).astype(int)
    return [" ".join(generator.choice(words, length)) for length in lengths]


def plain_transformers(folder: Path, skipped: int, longest: int) -> Encode:
    """The loop that one writes first; the first `skipped` tokens are not pooled."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), BATCH):
            read = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            ids_BL, mask_BL = read["input_ids"], read["attention_mask"]
            states_BLD = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
            weights_BL1 = mask_BL.unsqueeze(-1).float()
            weights_BL1[:, :skipped] = 0
            vectors_BD = (states_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)
            vectors.append(torch.nn.functional.normalize(vectors_BD, dim=-1).numpy())
        return np.concatenate(vectors)

    return encode


def layers_alone(encoder: Any, tokens: Any) -> Callable[[], None]:
    """Every linear layer once a pack, each on random states of the pack's size."""
    import torch

    from rayvec.modeling.batching_plan import plan_batches

    layers = [layer for layer in encoder.backbone.modules() if hasattr(layer, "in_features")]
    sizes = [int(tokens.lengths[rows].sum()) for rows in plan_batches(tokens.lengths, encoder.token_budget)]
    widths = {layer.in_features for layer in layers}
    states = {(size, width): torch.randn(1, size, width) for size in set(sizes) for width in widths}

    @torch.inference_mode()
    def run() -> None:
        for size in sizes:
            for layer in layers:
                layer(states[size, layer.in_features])

    return run


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def measure(*, hidden: int, layers: int, texts: int, mean: float, longest: int, rounds: int) -> dict[str, Any]:
    """All figures; variants alternate, every second round backwards."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    from rayvec.modeling.encoder import TextEncoder

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    there = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = build(Path(name), hidden, layers, longest)
        corpus = documents(folder, texts, mean, longest)
        ours = TextEncoder.load(folder, device="cpu")
        rounded = TextEncoder.load(folder, device="cpu", dtype="int8")
        peer = SentenceTransformer(str(folder), device="cpu")
        tokens = ours.tokenize(corpus)
        loop = plain_transformers(folder, int(tokens.pool_start[0]), longest)
    variants: dict[str, Encode] = {
        "arrival": loop,
        "st": lambda some: np.asarray(peer.encode(list(some), batch_size=BATCH, show_progress_bar=False)),
        "ours": ours.encode,
        "int8": rounded.encode,
    }
    few = corpus[: min(48, texts)]
    exact = ours.encode(few)
    cosine = {name: float(cosines(encode(few), exact).min()) for name, encode in variants.items()}
    if any(cosine[name] < floor for name, floor in FLOORS.items()):
        raise SystemExit(f"vectors differ, so times mean nothing: lowest cosine {cosine}, floors {FLOORS}")
    alone = {name: np.concatenate([variants[name]([text]) for text in few[:8]]) for name in ("ours", "int8")}
    batch = {name: float(np.abs(variants[name](few)[:8] - vectors).max()) for name, vectors in alone.items()}
    square = torch.randn(2048, 2048)
    calls: dict[str, Callable[[], object]] = {
        "product": lambda: [square @ square for _ in range(4)],
        **{name: lambda encode=encode: encode(corpus) for name, encode in variants.items()},  # type: ignore[misc]
        "layers": layers_alone(ours, tokens),
    }
    timings = {name: Timing() for name in calls}
    calls["product"]()
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            timings[name].add(calls[name])
    size = sum(values.numel() for name, values in ours.backbone.decoder.state_dict().items() if "embed" not in name)
    count = int(tokens.lengths.sum())
    work = 2 * size * count
    attention = 4 * hidden * layers * int((tokens.lengths.astype(np.int64) ** 2).sum())
    rate = 4 * 2 * 2048**3 / timings["product"].medians["cpu"]
    seconds = {name: timings[name].medians for name in (*variants, "layers")}
    return {
        "machine": there,
        "weights": size,
        "texts": texts,
        "tokens": count,
        "product_gflops": rate / 1e9,
        "cosine": cosine,
        "batch_difference": batch,
        "seconds": seconds,
        "time_ratio": {
            f"{slow}/{fast}": ratio(timings, slow, fast) for slow in ("arrival", "st") for fast in ("ours", "int8")
        },
        "tokens_per_second": {name: count / values["cpu"] for name, values in seconds.items()},
        "share_of_product_rate": {name: work / values["cpu"] / rate for name, values in seconds.items()},
        "share_with_attention": {
            name: (work + attention) / values["cpu"] / rate for name, values in seconds.items() if name in variants
        },
    }


@click.command(help=__doc__)
@click.option("--hidden", default=512, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--texts", default=300, show_default=True)
@click.option("--mean", default=130.0, show_default=True, help="tokens of a text")
@click.option("--longest", default=512, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **shape: Any) -> None:
    result = measure(**shape)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(
        f"{result['weights']:,} weights; {result['texts']:,} texts, {result['tokens']:,} tokens; "
        f"float32 product {result['product_gflops']:.0f} GFLOP/s"
    )
    print(f"{'':<10}{'wall s':>8}{'cpu s':>8}{'tokens/s':>10}{'product':>9}", end="")
    print(f"{'+ att.':>8}{'cosine':>9}{'x ours':>8}{'x int8':>8}")
    for name, seconds in result["seconds"].items():
        line = f"{name:<10}{seconds['wall']:>8.2f}{seconds['cpu']:>8.2f}{result['tokens_per_second'][name]:>10,.0f}"
        line += f"{result['share_of_product_rate'][name]:>9.1%}"
        if name in result["cosine"]:
            line += f"{result['share_with_attention'][name]:>8.1%}{result['cosine'][name]:>9.5f}"
        if name in ("arrival", "st"):
            line += "".join(f"{result['time_ratio'][f'{name}/{fast}']['cpu']:>8.2f}" for fast in ("ours", "int8"))
        print(line)
    print("largest difference of a number, in a batch and alone:", result["batch_difference"])


if __name__ == "__main__":
    main()
