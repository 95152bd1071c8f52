"""What Ray and DeepSpeed cost above the bare loop: python benchmarks/training_overhead.py [--workers 1 --workers 2]

MNTP of a small random Llama through `pipelines.train`: N workers of one core each under Ray Train and DeepSpeed, beside
N processes that each run the same loop bare (workers=0, plain engine), at the same time, on as many texts as a worker
has. So both share the cores and the memory alike, and what differs is Ray, DeepSpeed and the averaging of gradients.
The two alternate. A step is `seconds_per_step` of the reports, which holds the one checkpoint at the end; what comes
before the first step is told apart. Only a quiet machine gives figures worth keeping: look at the load that is printed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.gradient_cache import inputs
from benchmarks.harness import in_words, machine, write_json
from pipelines.train import TrainConfig, train
from rayvec.data.source_config import SourceConfig
from rayvec.training.stages import Mntp, Texts


def run_bare(values: dict[str, Any]) -> dict[str, Any]:
    """One bare run; what a process of the bare group does."""
    import torch

    torch.set_num_threads(1)
    return train(TrainConfig.parse(values))


def bare(config: TrainConfig, folder: Path, count: int) -> dict[str, float]:
    """`count` bare runs at once, each on its share of the batch: the mean seconds of a step."""
    values = [
        config.replace(
            workers=0, engine="plain", batch_size=config.batch_size // count, output=str(folder / f"bare-{number}")
        ).model_dump(mode="json")
        for number in range(count)
    ]
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        reports = pool.map(run_bare, values, chunksize=1)
    return {"step": statistics.mean(report["seconds_per_step"] for report in reports)}


def on_ray(config: TrainConfig, folder: Path, count: int) -> dict[str, float]:
    """One run of `count` workers: seconds of a step, and of everything before the first one and after the last."""
    started = time.monotonic()
    report = train(config.replace(workers=count, engine="deepspeed", output=str(folder / "ray")))
    whole = time.monotonic() - started
    return {"step": report["seconds_per_step"], "fixed": whole - report["seconds_per_step"] * config.steps}


def measure(
    *, hidden: int, layers: int, texts: int, length: int, steps: int, rounds: int, workers: tuple[int, ...]
) -> dict[str, Any]:
    """All figures of one shape. texts: of `length` tokens, a worker and step."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    there = machine()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs(folder, hidden, layers, pairs=1, words=8)
        documents = [{"id": str(i), "text": "a key of the list or a vector " * length} for i in range(16)]
        (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents), encoding="utf-8")
        for count in workers:
            config = TrainConfig(
                stage=Mntp(documents="joined"),
                data=Texts(source=SourceConfig(path=str(folder / "docs.jsonl"))),
                start=str(folder / "base"),
                steps=steps,
                batch_size=texts * count,
                max_length=length,
                log_every=steps,
                checkpoint_every=steps,
                evaluate_every=steps,
            )
            runs: dict[str, list[dict[str, float]]] = {"bare": [], "ray": []}
            for number in range(rounds):
                runs["bare"].append(bare(config, folder / f"{count}-{number}", count))
                runs["ray"].append(on_ray(config, folder / f"{count}-{number}", count))
            step = {name: statistics.median(run["step"] for run in those) for name, those in runs.items()}
            found[str(count)] = {
                "runs": runs,
                "seconds_per_step": step,
                "overhead": step["ray"] / step["bare"] - 1,
                "fixed_seconds": statistics.median(run["fixed"] for run in runs["ray"]),
            }
    return {"machine": there, "steps": steps, "tokens_a_worker": texts * length, "workers": found}


@click.command(help=__doc__)
@click.option("--hidden", default=256, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--texts", default=32, show_default=True, help="of a worker and step")
@click.option("--length", default=128, show_default=True, help="tokens of a text")
@click.option("--steps", default=20, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--workers", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **shape: Any) -> None:
    result = measure(**shape)
    print(in_words(result["machine"]))
    print(
        f"{result['tokens_a_worker']:,} tokens a worker and step, {result['steps']} steps, median of {shape['rounds']}"
    )
    print(f"{'workers':>8}{'bare s/step':>13}{'Ray s/step':>12}{'overhead':>10}{'fixed s':>9}")
    for count, row in result["workers"].items():
        step = row["seconds_per_step"]
        print(
            f"{count:>8}{step['bare']:>13.3f}{step['ray']:>12.3f}{row['overhead']:>10.1%}{row['fixed_seconds']:>9.1f}"
        )
    write_json(json_path, result)


if __name__ == "__main__":
    main()
