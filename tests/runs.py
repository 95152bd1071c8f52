"""Small training runs for tests: a random Llama, a few texts and pairs, one configuration a stage."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines.train import TrainConfig
from rayvec.data.source_config import SourceConfig
from rayvec.modeling.adapters import LoraSettings
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.stages import Mntp, Pairs, PairSet, Pretrain, Simcse, Supervised, Texts
from tests.models import SENTENCES, tiny_llama

LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)


def write_inputs(folder: Path) -> Path:
    """base/ (a random Llama), docs.jsonl and pairs.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_llama(folder / "base")
    documents = [
        {"id": f"doc-{i}", "text": f"{i} " + " ".join(SENTENCES[(i * k + k) % 6][: 30 + i % 25] for k in range(1, 4))}
        for i in range(60)
    ]
    pairs = [
        {"query": f"{SENTENCES[i % 6][:20]} {i}", "positive": f"{SENTENCES[i % 6]} {i}", "negative": [SENTENCES[i % 5]]}
        for i in range(40)
    ]
    for name, rows in (("docs", documents), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config(inputs: Path, output: Path, kind: str = "mntp", **changes: Any) -> TrainConfig:
    """A run of four steps in this process; `stage` may be given whole."""
    stages = {
        "pretrain": Pretrain(),
        "mntp": Mntp(lora=LORA),
        "simcse": Simcse(lora=LORA),
        "supervised": Supervised(lora=LORA),
    }
    texts = Texts(source=SourceConfig(path=str(inputs / "docs.jsonl")))
    pairs = Pairs(sets=(PairSet(name="pairs", path=str(inputs / "pairs.jsonl"), instructions=("find it",)),))
    values: dict[str, Any] = {
        "stage": stages[kind],
        "data": pairs if kind == "supervised" else texts,
        "start": str(inputs / "base"),
        "output": str(output),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "steps": 4,
        "batch_size": 8,
        "max_length": 32,
        "log_every": 1,
        "checkpoint_every": 2,
        "workers": 0,
    }
    return TrainConfig(**{**values, **changes})


def adapter(output: Path) -> bytes:
    """The bytes of the adapter that a run ended with."""
    (path,) = output.glob("adapters/1-*/adapter_model.safetensors")
    return path.read_bytes()


def assert_gradient_is_the_slope(module: torch.nn.Module, batch: Any, parameter: torch.nn.Parameter) -> None:
    """The gradient of one weight beside the difference of two losses, both with the same random numbers, in doubles."""

    def loss_of(shift: float) -> torch.Tensor:
        parameter.data.view(-1)[0] += shift
        torch.manual_seed(3)
        loss: torch.Tensor = module(batch)[0]
        parameter.data.view(-1)[0] -= shift
        return loss

    module.double()
    loss_of(0.0).backward()
    assert parameter.grad is not None
    slope = (loss_of(1e-3) - loss_of(-1e-3)).detach() / 2e-3
    assert float(parameter.grad.view(-1)[0]) == pytest.approx(float(slope), rel=0.02)


def kill_with_children(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, as a power cut would, without a chance to finish anything."""
    job = psutil.Process(process.pid)
    everything = [job, *job.children(recursive=True)]
    for one in everything:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(everything, timeout=30)
