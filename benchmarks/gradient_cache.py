"""GradCache: a big contrastive batch in the memory of a small one: python benchmarks/gradient_cache.py

One step, forward and backward, of the supervised stage's own torch module on queries and positives: a batch of 64, a
batch of 512, and that batch with `gradient_cache` = the texts of the small one. The gradients of the big batch must be
the same with and without before anything counts. Memory is that of the step's own tensors, at its peak; GradCache
encodes each text twice, so it may cost half as much time again (6 instead of 4 units with LoRA).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import alternate, in_words, machine, peak_of_tensors, ratio, write_json
from rayvec.errors import RayvecError


def inputs(folder: Path, hidden: int, layers: int, pairs: int, words: int) -> None:
    """A random Llama with a tokenizer, and pairs of random words: base/ and pairs.jsonl."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.models import VOCABULARY, tiny_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 256),
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tiny_tokenizer(folder / "base")
    generator = np.random.default_rng(0)
    known = ("encoder", "vector", "list", "key", "question", "token", "left", "text", "value", "dictionary")

    def text() -> str:
        return " ".join(generator.choice(known, max(2, int(generator.lognormal(np.log(words), 0.5)))))

    lines = [json.dumps({"query": text(), "positive": text()}) + "\n" for _ in range(pairs)]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")


def open_module(folder: Path, batch: int, cache: int | None) -> Any:
    """The supervised stage's module on these pairs, without dropout: GradCache draws other random numbers."""
    import torch

    from rayvec.modeling.adapters import LoraSettings
    from rayvec.training.examples import prepare_pairs
    from rayvec.training.modules import SupervisedModule
    from rayvec.training.stages import Pairs, PairSet, Supervised, TrainingConfig

    config = TrainingConfig(
        stage=Supervised(lora=LoraSettings(dropout=0.0), hard_negatives=0, gradient_cache=cache),
        data=Pairs(sets=(PairSet(name="pairs", path=str(folder / "pairs.jsonl")),)),
        start=str(folder / "base"),
        batch_size=batch,
        max_length=128,
    )
    data = folder / "data"
    if not data.exists():
        prepare_pairs(config, data, str(folder / "cache"))
    torch.manual_seed(0)
    module = SupervisedModule(config, data, "cpu").train()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # zeros at first: with them no gradient would reach lora_A
            torch.nn.init.normal_(parameter, std=0.02)
    return module


def measure(*, hidden: int, layers: int, small: int, big: int, words: int, rounds: int) -> dict[str, Any]:
    """All figures of one shape."""
    import torch

    there = machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs(folder, hidden, layers, big, words)
        # A batch of n pairs has 2n texts.
        modules = {
            "small": open_module(folder, small, None),
            "big": open_module(folder, big, None),
            "cached": open_module(folder, big, 2 * small),
        }
        batches = {name: module.batch_at(0) for name, module in modules.items()}

    def step(name: str) -> Any:
        modules[name].zero_grad(set_to_none=True)
        total = 0.0
        for part in batches[name]:
            loss, _ = modules[name](part)
            loss.backward()
            total += float(loss.detach())
        trained = [p.grad.flatten() for p in modules[name].parameters() if p.requires_grad]
        return total, torch.cat(trained)

    (loss, plain), (cached_loss, cached) = step("big"), step("cached")
    difference = float((plain - cached).norm() / plain.norm())
    if difference > 1e-4 or abs(loss - cached_loss) > 1e-5 * loss:
        raise RayvecError(
            f"GradCache gives other results: loss {cached_loss} for {loss}, gradients off by {difference}"
        )
    timings = alternate({name: lambda n=name: step(n) for name in modules}, rounds)  # type: ignore[misc]
    peaks: dict[str, list[int]] = {name: [] for name in modules}
    for _ in range(rounds):
        for name in modules:
            peaks[name].append(peak_of_tensors(lambda n=name: step(n)))  # type: ignore[misc]
    memory = {name: statistics.median(values) for name, values in peaks.items()}
    return {
        "machine": there,
        "shape": {"hidden": hidden, "layers": layers, "small": small, "big": big},
        "tokens": {name: sum(part.tokens for part in parts) for name, parts in batches.items()},
        "loss": loss,
        "gradient_difference": difference,
        "seconds": {name: timing.medians for name, timing in timings.items()},
        "bytes": memory,
        "time_ratio": ratio(timings, "cached", "big"),
        "memory_ratio": {name: memory["cached"] / memory[name] for name in ("small", "big")},
    }


@click.command(help=__doc__)
@click.option("--hidden", default=256, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--small", default=64, show_default=True, help="pairs of the batch whose memory is the measure")
@click.option("--big", default=512, show_default=True, help="pairs of the batch that GradCache makes")
@click.option("--words", default=10, show_default=True, help="of a text, in the median")
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **shape: int) -> None:
    result = measure(**shape)
    print(in_words(result["machine"]))
    print(f"loss {result['loss']:.5f}; gradients with and without differ by {result['gradient_difference']:.1e}")
    print(f"{'':<28}{'tokens':>8}{'wall s':>9}{'cpu s':>9}{'extra MB':>10}")
    shown = {
        "small": f"batch {shape['small']}",
        "big": f"batch {shape['big']}",
        "cached": f"batch {shape['big']}, cached",
    }
    for name, words in shown.items():
        seconds = result["seconds"][name]
        print(
            f"{words:<28}{result['tokens'][name]:>8,}{seconds['wall']:>9.2f}{seconds['cpu']:>9.2f}"
            f"{result['bytes'][name] / 1e6:>10,.0f}"
        )
    memory, time = result["memory_ratio"], result["time_ratio"]
    print(f"memory: {memory['small']:.2f} of the small batch's, {memory['big']:.2f} of the big one's; ", end="")
    print(f"time: {time['wall']:.2f} (cpu {time['cpu']:.2f}) of the big one's without")
    write_json(json_path, result)


if __name__ == "__main__":
    main()
