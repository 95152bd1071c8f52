from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from rayvec.errors import VerificationError
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.prompts import Prompts
from tests.models import FAMILIES, SENTENCES, save_model
from tests.rayvec.modeling.test_adapters import stage

QUERY = "Find the function that does it"
PROMPTS = Prompts(instructions={"query": QUERY})
TEXTS = [*SENTENCES, "a", "今天天气很好" * 300]  # the last is cut
COSINE = 0.9999


def export(base: Path, path: Path, **settings: Any) -> TextEncoder:
    """Export an encoder of this base; returns the encoder that was exported."""
    encoder = TextEncoder.from_decoder(base, max_length=256, **{"prompts": PROMPTS, **settings})
    encoder.save(path, merged=True)
    return encoder


def by_sentence_transformers(path: Path, texts: list[str], **options: Any) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(str(path), device="cpu").encode(texts, batch_size=3, **options))


def by_transformers(path: Path, texts: list[str]) -> np.ndarray:
    """Padded, with a mean over what is no special token: what a user of plain transformers writes."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_special_tokens_mask=True)
    pooled = (1 - inputs.pop("special_tokens_mask"))[..., None]
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    vectors = (states * pooled).sum(1) / pooled.sum(1)
    return np.asarray(torch.nn.functional.normalize(vectors, dim=-1))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).min())


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextEncoder]:
    folder = tmp_path_factory.mktemp("export") / request.param
    return folder / "merged", export(save_model(request.param, folder / "base"), folder / "merged")


def test_plain_transformers_gives_the_same_vectors(exported: tuple[Path, TextEncoder]) -> None:
    path, encoder = exported
    assert cosine(by_transformers(path, TEXTS), encoder.encode(TEXTS)) >= COSINE


def test_sentence_transformers_gives_the_same_vectors(exported: tuple[Path, TextEncoder]) -> None:
    path, encoder = exported
    assert cosine(by_sentence_transformers(path, TEXTS), encoder.encode(TEXTS)) >= COSINE


def test_sentence_transformers_leaves_the_instruction_out_too(exported: tuple[Path, TextEncoder]) -> None:
    path, encoder = exported
    theirs = by_sentence_transformers(path, TEXTS, prompt_name="query")
    assert cosine(theirs, encoder.encode(TEXTS, QUERY)) >= COSINE


@pytest.mark.parametrize("pooling", ["last_token", "bos"])
def test_other_poolings_give_the_same_vectors(pooling: str, llama: Path, tmp_path: Path) -> None:
    prompts = Prompts(instructions={"query": QUERY}, append_eos=pooling == "last_token")
    encoder = export(llama, tmp_path / "merged", pooling=pooling, prompts=prompts)
    assert cosine(by_sentence_transformers(tmp_path / "merged", TEXTS), encoder.encode(TEXTS)) >= COSINE


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer knows the tokens of chat formats."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = save_model("llama", tmp_path_factory.mktemp("chat"))
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    named = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in [*named, "<start_of_turn>", "<end_of_turn>"]])
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("template", ["llama3", "qwen", "gemma"])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_a_chat_format_is_read_and_left_out_of_the_pooling_there_too(
    template: str, pooling: str, chat: Path, tmp_path: Path
) -> None:
    prompts = Prompts(template=template, instructions={"query": QUERY}, append_eos=pooling == "last_token")
    encoder = export(chat, tmp_path / "merged", pooling=pooling, prompts=prompts)
    for name, instruction in (("query", QUERY), ("document", None), (None, None)):
        theirs = by_sentence_transformers(tmp_path / "merged", TEXTS, prompt_name=name)
        assert np.abs(theirs - encoder.encode(TEXTS, instruction)).max() <= 1e-5
    again = TextEncoder.load(tmp_path / "merged")  # its tokenizer closes the format by itself, which is not done twice
    assert again.fingerprint == encoder.fingerprint
    assert np.abs(again.encode(TEXTS, QUERY) - encoder.encode(TEXTS, QUERY)).max() <= 1e-6


def test_without_normalisation_lengths_are_the_same(llama: Path, tmp_path: Path) -> None:
    encoder = export(llama, tmp_path / "merged", normalize=False)
    assert np.allclose(by_sentence_transformers(tmp_path / "merged", TEXTS), encoder.encode(TEXTS), atol=1e-4)


def test_pooled_special_tokens_are_pooled_there_too(tmp_path: Path) -> None:
    encoder = export(save_model("bert", tmp_path / "base"), tmp_path / "merged", prompts=Prompts(pool_special=True))
    assert not (tmp_path / "merged" / "1_WordWeights").exists()
    assert cosine(by_sentence_transformers(tmp_path / "merged", TEXTS), encoder.encode(TEXTS)) >= COSINE


def test_the_config_says_that_it_is_not_causal(exported: tuple[Path, TextEncoder]) -> None:
    assert json.loads((exported[0] / "config.json").read_text())["is_causal"] is False


def test_the_export_is_an_encoder_folder(exported: tuple[Path, TextEncoder]) -> None:
    path, encoder = exported
    assert np.abs(TextEncoder.load(path).encode(TEXTS) - encoder.encode(TEXTS)).max() <= 1e-6


def test_adapter_folder_and_merged_export_have_the_same_fingerprint(llama: Path, tmp_path: Path) -> None:
    stage(stage(llama, tmp_path / "a", "mntp", 1), tmp_path / "b", "simcse", 2)
    encoder = TextEncoder.load(tmp_path / "b")
    encoder.save(tmp_path / "merged", merged=True)
    merged = TextEncoder.load(tmp_path / "merged")
    assert merged.fingerprint == encoder.fingerprint
    assert np.abs(merged.encode(TEXTS) - encoder.encode(TEXTS)).max() <= 1e-6
    assert cosine(by_sentence_transformers(tmp_path / "merged", TEXTS), encoder.encode(TEXTS)) >= COSINE


def test_an_export_needs_no_base(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    encoder = export(base, tmp_path / "merged")
    base.rename(tmp_path / "moved")
    assert TextEncoder.load(tmp_path / "merged").fingerprint == encoder.fingerprint


def test_damaged_weights_are_found_out(llama: Path, tmp_path: Path) -> None:
    export(llama, tmp_path / "merged")
    weights = tmp_path / "merged" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(VerificationError, match=r"model\.safetensors does not match"):
        TextEncoder.load(tmp_path / "merged")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"prompts": Prompts(template="inst")},
            "cannot tell [/INST], the chat format's end, from the text; train with",
        ),
        ({"pooling": "weighted_mean"}, "weighted mean"),
        ({"dim": 16}, "fewer dimensions"),
    ],
)
def test_what_sentence_transformers_cannot_do_is_left_out_with_a_warning(
    settings: dict[str, Any], reason: str, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = export(llama, tmp_path / "merged", **settings)
    assert reason in caplog.text
    assert not (tmp_path / "merged" / "modules.json").exists()
    assert TextEncoder.load(tmp_path / "merged").fingerprint == encoder.fingerprint
