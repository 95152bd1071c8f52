"""What packing saves where texts are short: python benchmarks/simcse_packing.py

One SimCSE step, forward and backward, on sentences of 28 tokens in the mean: ours (both views in one pack, no padding)
beside the same layers read by plain transformers (sdpa), each view padded to 128 tokens, as the reference's collator
does, and each padded to the batch's longest. Same texts, weights and LoRA. With dropout 0, losses and gradients must
agree before a time counts; the times are with the recipe's dropout (attention 0.3, LoRA 0.05).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.harness import alternate, in_words, machine, ratio, write_json


def measure(
    *,
    hidden: int,
    layers: int,
    texts: int,
    mean: float,
    longest: int,
    rounds: int,
    attention_dropout: float,
    lora_dropout: float,
) -> dict[str, Any]:
    """All figures of one shape. attention_dropout and lora_dropout act while times are taken."""
    from transformers import LlamaConfig

    from benchmarks import readings as r

    vocabulary = 8192  # no head runs: only the embedding table depends on it
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=vocabulary,
    )
    there = machine()
    readings = r.Readings.build(config, lora_dropout=lora_dropout)
    batch = r.sentences(texts, mean, longest, vocabulary)
    in_batch = int(batch.lengths.max())
    losses = {
        "ours": r.simcse_ours(readings, batch),
        "longest": r.simcse_theirs(readings, batch, in_batch),
        "padded": r.simcse_theirs(readings, batch, longest),
    }
    readings.set_dropout(attention=0.0, lora=0.0)
    found = {name: r.agreement(readings, losses["ours"], losses[name]) for name in ("longest", "padded")}
    for values in found.values():
        r.require_agreement(values)
    readings.set_dropout(attention=attention_dropout, lora=lora_dropout)

    def step(name: str) -> None:
        if name == "ours":
            readings.read_packed()
        else:
            readings.read_padded()
        readings.step(losses[name])

    timings = alternate({name: lambda n=name: step(n) for name in losses}, rounds)  # type: ignore[misc]
    real = 2 * int(batch.lengths.sum())
    return {
        "machine": there,
        "shape": {"hidden": hidden, "layers": layers, "size": readings.size},
        "texts": texts,
        "tokens": {"ours": real, "longest": 2 * texts * in_batch, "padded": 2 * texts * longest},
        "dropout": {"attention": attention_dropout, "lora": lora_dropout},
        "agreement": found,
        "seconds": {name: timing.medians for name, timing in timings.items()},
        "time_ratio": {name: ratio(timings, name, "ours") for name in ("longest", "padded")},
    }


@click.command(help=__doc__)
@click.option("--hidden", default=512, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--texts", default=32, show_default=True)
@click.option("--mean", default=28.0, show_default=True, help="tokens of a text")
@click.option("--longest", default=128, show_default=True, help="what the reference pads to")
@click.option("--rounds", default=3, show_default=True)
@click.option("--attention-dropout", default=0.3, show_default=True)
@click.option("--lora-dropout", default=0.05, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **shape: Any) -> None:
    result = measure(**shape)
    print(in_words(result["machine"]))
    print(f"{result['shape']['size']:,} weights, {result['texts']} texts twice; dropout {result['dropout']}")
    print(f"{'':<24}{'tokens':>8}{'wall s':>8}{'cpu s':>8}{'wall':>8}{'cpu':>8}{'loss off':>10}{'grad off':>10}")
    for name, words in (("ours", "packed"), ("longest", "to the batch's longest"), ("padded", "to the limit")):
        seconds = result["seconds"][name]
        line = f"{words:<24}{result['tokens'][name]:>8,}{seconds['wall']:>8.2f}{seconds['cpu']:>8.2f}"
        if name != "ours":
            ratios, agreed = result["time_ratio"][name], result["agreement"][name]
            line += f"{ratios['wall']:>7.2f}x{ratios['cpu']:>7.2f}x"
            line += f"{agreed['loss_difference']:>10.0e}{agreed['gradient_difference']:>10.0e}"
        print(line)
    write_json(json_path, result)


if __name__ == "__main__":
    main()
