"""The card that a run leaves: its numbers are those of metrics.jsonl, its picture is there, and it names no folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from pipelines.train import train
from rayvec.modeling.manifest import EncoderManifest
from rayvec.training.curves import read_metrics
from rayvec.training.pretraining import DecoderConfig
from rayvec.training.stages import Mntp, Pretrain, StsSet
from tests.models import SENTENCES
from tests.runs import config, write_inputs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    lines = [f'"{SENTENCES[i % 6]}","{SENTENCES[i * 5 % 6]}",{i % 4}\n' for i in range(12)]
    (folder / "sts.csv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_an_encoder_says_what_its_run_measured(inputs: Path, tmp_path: Path) -> None:
    sets = (StsSet(name="sts", data=str(inputs / "sts.csv")),)
    train(config(inputs, tmp_path / "run", steps=2, evaluation=sets))
    text = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    metrics = read_metrics(tmp_path / "run" / "training" / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    measured = [line["eval/sts/spearman"] for line in metrics if "eval/sts/spearman" in line]
    assert f"| loss in training | {losses[0]:.4g} → {losses[1]:.4g} |" in text
    assert f"| `sts/spearman` | {measured[0]:.4f} | {measured[-1]:.4f} |" in text
    assert "](training/curves.png)" in text and (tmp_path / "run" / "training" / "curves.png").exists()
    assert str(inputs) not in text and str(tmp_path) not in text
    assert "README.md" not in EncoderManifest.read(tmp_path / "run").files


def test_a_stage_that_trained_all_weights_is_in_its_own_card(inputs: Path, tmp_path: Path) -> None:
    train(config(inputs, tmp_path / "run", steps=1, stage=Mntp(lora=None)))
    text = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "### 1. mntp" in text and "| trained | all weights |" in text
    assert ModelCard(text).data.library_name == "sentence-transformers"


def test_a_pretrained_decoder_has_a_card(inputs: Path, tmp_path: Path) -> None:
    shape = DecoderConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, layers=1, heads=2, key_value_heads=1, context=32
    )
    train(config(inputs, tmp_path / "run", "pretrain", steps=1, start="", stage=Pretrain(decoder=shape)))
    text = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.pipeline_tag == "text-generation"
    assert "1 layers, 32 wide, 2 heads, 512 tokens" in text
