"""What the vocabulary head at masked positions alone saves: python benchmarks/mntp_head.py

One MNTP step, forward and backward, of a small Llama with a 128,256-word head: ours (`rayvec.losses.masked_next_token`)
beside plain transformers' own loss with `labels=`, which makes logits at every position. Same weights and LoRA, same
masked tokens, both bidirectional; losses and gradients must agree before a time counts. The two alternate. Memory is
the peak of resident memory above the level before the step.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import alternate, in_words, machine, peak_above, ratio, write_json


def measure(hidden: int, layers: int, vocabulary: int, texts: int, length: int, rounds: int) -> dict[str, Any]:
    """All figures of one shape."""
    from transformers import LlamaConfig

    from benchmarks import readings as r

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,  # Llama 3's proportions
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=vocabulary,
        max_position_embeddings=length,
    )
    there = machine()
    readings = r.Readings.build(config)
    batch = r.masked_batch(texts, length, vocabulary)
    ours, theirs = r.mntp_ours(readings, batch), r.mntp_theirs(readings, batch)
    found = r.agreement(readings, ours, theirs)
    r.require_agreement(found)

    def step_ours() -> None:
        readings.read_packed()
        readings.step(ours)

    def step_theirs() -> None:
        readings.read_padded()
        readings.step(theirs)

    timings = alternate({"ours": step_ours, "theirs": step_theirs}, rounds)
    peaks: dict[str, list[int]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        peaks["ours"].append(peak_above(step_ours))
        peaks["theirs"].append(peak_above(step_theirs))
    memory = {name: statistics.median(values) for name, values in peaks.items()}
    return {
        "machine": there,
        "shape": {"hidden": hidden, "layers": layers, "vocabulary": vocabulary, "size": readings.size},
        "tokens": batch.tokens,
        "masked": len(batch.labels),
        "agreement": found,
        "seconds": {name: timing.medians for name, timing in timings.items()},
        "bytes": memory,
        "time_ratio": ratio(timings, "theirs", "ours"),
        "memory_ratio": memory["ours"] / memory["theirs"],
    }


@click.command(help=__doc__)
@click.option("--hidden", default=512, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--vocabulary", default=128_256, show_default=True)
@click.option("--texts", default=8, show_default=True)
@click.option("--length", default=512, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(
    hidden: int, layers: int, vocabulary: int, texts: int, length: int, rounds: int, json_path: Path | None
) -> None:
    result = measure(hidden, layers, vocabulary, texts, length, rounds)
    print(in_words(result["machine"]))
    print(f"{layers} layers of {hidden}, V {vocabulary:,}, {result['tokens']:,} tokens, {result['masked']:,} masked")
    agreed = result["agreement"]
    print(f"loss {agreed['loss_ours']:.6f}, off by {agreed['loss_difference']:.1e}; ", end="")
    print(f"gradients off by {agreed['gradient_difference']:.1e}")
    print(f"{'':<24}{'ours':>10}{'theirs':>10}{'ratio':>10}   median of {rounds}")
    for kind in ("wall", "cpu"):
        ours, theirs = (result["seconds"][name][kind] for name in ("ours", "theirs"))
        print(f"{kind + ' s a step':<24}{ours:>10.2f}{theirs:>10.2f}{result['time_ratio'][kind]:>9.2f}x")
    ours, theirs = (result["bytes"][name] / 1e6 for name in ("ours", "theirs"))
    print(f"{'extra memory, MB':<24}{ours:>10,.0f}{theirs:>10,.0f}{result['memory_ratio']:>9.2f}x")
    write_json(json_path, result)


if __name__ == "__main__":
    main()
