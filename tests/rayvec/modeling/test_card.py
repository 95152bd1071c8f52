"""Model cards: front matter that the hub takes, what they say of an encoder, and what they must never say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rayvec.modeling.card import Course, write_decoder_card, write_encoder_card
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.manifest import AdapterRecord, EncoderManifest
from rayvec.modeling.prompts import Prompts

#: What the stage `supervised` records, of which the card takes a part.
SUPERVISED: dict[str, Any] = {
    "stage": "supervised",
    "config": {
        "stage": {
            "kind": "supervised",
            "lora": {"rank": 16, "alpha": 32, "dropout": 0.05},
            "scale": 50.0,
            "matryoshka": [16, 8],
            "hard_negatives": 3,
            "continue_last": True,
        },
        "data": {
            "kind": "pairs",
            "sets": [
                {
                    "name": "nli",
                    "path": "/home/me/data/nli.jsonl",
                    "weight": 2.0,
                    "instructions": ["Find | the\nsame", "other"],
                }
            ],
        },
        "start": "/home/me/runs/simcse",
        "optimizer": {"learning_rate": 2e-4, "schedule": "cosine", "warmup_steps": 30},
        "steps": 100,
        "batch_size": 64,
        "max_length": 128,
        "seed": 7,
    },
    "steps": 100,
    "loss": 1.25,
    "accuracy": 0.5,
    "learning_rate": 1e-6,
    "gradient_norm": 0.3,
}


def manifest(base: str = "org/decoder", **changes: Any) -> EncoderManifest:
    adapters = tuple(AdapterRecord(stage=s, sha256=s[0] * 64, base_lineage="") for s in ("mntp", "supervised"))
    values = {
        "base": base,
        "base_sha256": "b" * 64,
        "adapters": adapters,
        "dim": 32,
        "tokenizer": "t",
        "training": ({"stage": "mntp", "loss": 4.0}, SUPERVISED),
    }
    return EncoderManifest(**{**values, **changes})


def card(folder: Path, record: EncoderManifest, course: Course | None = None) -> str:
    write_encoder_card(folder, record, course)
    return (folder / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, str]:
    """The first two cells of each table row; later tables win."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1] for line in cells}


def test_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    data = ModelCard(card(tmp_path, manifest())).data.to_dict()
    assert data == {
        "library_name": "rayvec",
        "pipeline_tag": "feature-extraction",
        "tags": ["feature-extraction", "sentence-similarity", "llm2vec", "rayvec"],
        "base_model": "org/decoder",
        "base_model_relation": "adapter",
    }


@pytest.mark.parametrize("base", ["/home/me/models/decoder", "embedded:decoder", "s3://bucket/models/decoder"])
def test_a_base_that_the_hub_does_not_hold_is_named_but_not_linked(tmp_path: Path, base: str) -> None:
    text = card(tmp_path, manifest(base))
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert rows(text)["base"] == "`decoder`"
    assert "/home/me" not in text and "bucket" not in text


def test_stages_settings_and_numbers(tmp_path: Path) -> None:
    course = Course({"loss": (3.5, 1.25), "eval/sts/spearman": (0.31234, 0.7)}, "training/curves.png")
    text = card(tmp_path, manifest(), course)
    found = rows(text)
    assert found["1"] == "`mntp`" and found["2"] == "`supervised`"
    assert found["started from"] == "`simcse`"
    assert found["trained"] == "LoRA of rank 16, alpha 32, dropout 0.05, the one before trained further"
    assert "temperature 0.02 (pairs, hard negatives: 3" in found["objective"]
    assert found["objective"].endswith("also of the first 16, 8 dimensions")
    assert found["steps"] == "100 × 64 pairs, each text cut at 128 tokens"
    assert found["learning rate"] == "0.0002, cosine, 30 steps of warm-up"
    assert found["loss in training"] == "3.5 → 1.25"
    assert found["accuracy in training"] == "0.5 at the end"
    assert found["`sts/spearman`"] == "0.3123"
    assert "4 at the end" in text  # of the stage before, whose beginning is not on record
    assert "![Curves of the last stage](training/curves.png)" in text


def test_an_instruction_stays_on_one_line_of_its_table(tmp_path: Path) -> None:
    text = card(tmp_path, manifest())
    assert r"drawn 2 times as often, instruction `Find \| the\nsame` and 1 more) |" in text
    assert r'instruction="Find | the\nsame")' in text


def test_how_texts_are_read(tmp_path: Path) -> None:
    record = manifest(prompts=Prompts(template="llama3", instructions={"query": "Find it"}), max_length=77)
    found = rows(card(tmp_path, record))
    assert found["chat template"] == "llama3"
    assert found["instruction query"] == "`Find it`"
    assert found["tokens at most"] == "77"
    assert found["fingerprint"] == f"`{record.fingerprint.short}`"


def test_the_code_of_a_card_runs(tmp_path: Path) -> None:
    encoder = TextEncoder.load("tiny", device="cpu")
    folder = tmp_path / "encoder"
    encoder.save(folder)
    text = card(folder, encoder.folder.manifest)
    code = text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["vectors"].shape == (2, 256)
    assert TextEncoder.load(folder, device="cpu").folder.fingerprint == encoder.folder.fingerprint


def test_an_export_has_its_card_and_does_not_vouch_for_it(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "merged", merged=True)
    text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.library_name == "sentence-transformers"
    assert "SentenceTransformer(" in text and "merged=True" not in text
    assert str(tmp_path) not in text and "/llama" not in text
    record = EncoderManifest.read(tmp_path / "merged")
    assert "README.md" not in record.files
    (tmp_path / "merged" / "README.md").write_text("changed by its user", encoding="utf-8")
    assert TextEncoder.load(tmp_path / "merged").folder.fingerprint == encoder.folder.fingerprint


def test_a_decoder_has_a_short_card(tmp_path: Path) -> None:
    shape = {"layers": 2, "hidden_size": 64, "heads": 4, "vocab_size": 512}
    config = SUPERVISED["config"] | {
        "stage": {"kind": "pretrain", "decoder": shape},
        "data": {"kind": "texts", "source": {"path": "", "packages": ["numpy"]}, "also": [], "max_documents": 9},
    }
    write_decoder_card(tmp_path, {"config": config, "loss": 3.0}, Course({"loss": (9.0, 3.0)}))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    found = rows(text)
    assert found["decoder"] == "2 layers, 64 wide, 4 heads, 512 tokens"
    assert found["steps"] == "100 × 8192 tokens, of texts cut at 128"
    assert found["data"] == "docstrings of Python packages (numpy); the first 9 documents"
    assert found["loss in training"] == "9 → 3"
    assert "curves" not in text
