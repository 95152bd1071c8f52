from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayvec.errors import RayvecError, UserError, VerificationError
from rayvec.modeling.encoder import Encoder, TextEncoder, Tokenizing, load_encoder, load_tokenizer_only
from rayvec.modeling.prompts import Prompts
from rayvec.modeling.tokens import TokenBatch
from tests.models import SENTENCES, family_config, save_model, tiny_llama, tiny_tokenizer

TEXTS = [*SENTENCES, "", "a", "今天天气很好" * 200]


@pytest.fixture(scope="module")
def saved(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "encoder"
    encoder.save(path)
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_it_is_an_encoder(encoder: TextEncoder) -> None:
    assert isinstance(encoder, Encoder)


def test_vectors_are_float32_of_length_one(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), encoder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("instruction", [None, "Find the function"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token", "bos"])
def test_d1_a_vector_does_not_depend_on_the_batch(llama: Path, pooling: Any, instruction: str | None) -> None:
    encoder = TextEncoder.from_decoder(llama, pooling=pooling, token_budget=600)
    together = encoder.encode(TEXTS, instruction)
    alone = np.concatenate([encoder.encode([text], instruction) for text in TEXTS])
    assert np.abs(together - alone).max() <= 1e-5


def test_d1_the_padded_path_does_not_depend_on_the_batch_either(llama: Path, encoder: TextEncoder) -> None:
    padded = TextEncoder.load(llama)
    padded.backbone.use_padding()
    assert np.abs(padded.encode(TEXTS) - encoder.encode(TEXTS)).max() <= 1e-5


def test_rows_keep_their_order_whatever_the_budget(llama: Path, encoder: TextEncoder) -> None:
    small = TextEncoder.load(llama, token_budget=50)
    assert np.abs(small.encode(TEXTS) - encoder.encode(TEXTS)).max() <= 1e-5


@pytest.mark.parametrize("padded", [False, True])
def test_token_states_lie_as_the_tokens_whatever_the_budget(llama: Path, encoder: TextEncoder, padded: bool) -> None:
    small = TextEncoder.load(llama, token_budget=50)
    if padded:
        small.backbone.use_padding()
    states_TD = small.token_states(small.tokenize(TEXTS))
    alone = [encoder.token_states(encoder.tokenize([text])) for text in TEXTS]
    assert states_TD.dtype == np.float32 and states_TD.shape[1] == 32
    assert np.abs(states_TD - np.concatenate(alone)).max() <= 1e-5
    means = np.stack([states.mean(0) for states in (a[1:] if len(a) > 1 else a for a in alone)])  # without <s>
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(means - encoder.encode(TEXTS)).max() <= 1e-5


def test_the_mean_is_of_the_texts_own_tokens(encoder: TextEncoder) -> None:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder.folder.weights, attn_implementation="eager").eval()
    model.config.is_causal = False
    tokens = encoder.tokenize(SENTENCES[:1], "Find it")
    with torch.inference_mode():
        states = model(torch.from_numpy(tokens.input_ids.astype(np.int64))[None]).last_hidden_state[0]
    mean = states[int(tokens.pool_start[0]) :].mean(0)
    assert float(encoder.encode(SENTENCES[:1], "Find it")[0] @ (mean / mean.norm()).numpy()) > 0.999999


def test_equal_texts_are_computed_once_and_have_equal_vectors(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def vectors(batch: TokenBatch) -> torch.Tensor:
        computed.extend(batch.row(row).tolist() for row in range(len(batch)))
        return compute(batch)

    compute = encoder._vectors
    monkeypatch.setattr(encoder, "_vectors", vectors)
    texts = [SENTENCES[place] for place in (0, 1, 0, 2, 2, 0)]
    found = encoder.encode(texts)
    assert len(computed) == 3
    assert all(np.array_equal(found[0], found[place]) for place in (2, 5)) and np.array_equal(found[3], found[4])
    np.testing.assert_allclose(found[[0, 1, 3]], encoder.encode(SENTENCES[:3]), atol=1e-6)


def test_an_instruction_changes_the_vector(encoder: TextEncoder) -> None:
    assert not np.allclose(encoder.encode(["sort"]), encoder.encode(["sort"], "Find it"), atol=1e-3)


def test_no_texts_are_no_vectors(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_without_normalisation_lengths_differ(llama: Path, encoder: TextEncoder) -> None:
    raw = TextEncoder.from_decoder(llama, normalize=False).encode(SENTENCES)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.ptp(lengths) > 0.01
    assert np.allclose(raw / lengths, encoder.encode(SENTENCES), atol=1e-6)


def test_save_and_load_give_the_same_encoder(encoder: TextEncoder, saved: Path) -> None:
    loaded = TextEncoder.load(saved)
    assert loaded.fingerprint == encoder.fingerprint
    assert np.array_equal(loaded.encode(SENTENCES), encoder.encode(SENTENCES))


def test_the_saved_config_is_not_causal(saved: Path) -> None:
    assert '"is_causal": false' in (saved / "config.json").read_text()


def test_the_tokenizer_alone_gives_the_same_tokens_and_fingerprint(encoder: TextEncoder, saved: Path) -> None:
    alone = load_tokenizer_only(str(saved))
    assert isinstance(alone, Tokenizing) and not isinstance(alone, Encoder)
    assert alone.fingerprint == encoder.fingerprint and alone.max_length == encoder.max_length
    assert np.array_equal(alone.tokenize(TEXTS).input_ids, encoder.tokenize(TEXTS).input_ids)


def test_what_only_reads_texts_needs_no_weights(encoder: TextEncoder, llama: Path, tmp_path: Path) -> None:
    encoder.save(tmp_path / "merged", merged=True)
    shutil.copytree(llama, tmp_path / "model")
    for name in ("merged", "model"):
        (tmp_path / name / "model.safetensors").unlink()
        alone = load_tokenizer_only(str(tmp_path / name), verify=False)
        assert np.array_equal(alone.tokenize(TEXTS).input_ids, encoder.tokenize(TEXTS).input_ids)
        assert (alone.fingerprint == encoder.fingerprint) is (name == "merged")
        with pytest.raises(RayvecError, match="safetensors"):
            load_tokenizer_only(str(tmp_path / name))
    (tmp_path / "merged/tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        load_tokenizer_only(str(tmp_path / "merged"), verify=False)


def test_importing_the_encoder_loads_no_torch() -> None:
    code = "import sys, rayvec.modeling.encoder, rayvec.modeling.adapters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bert_loads_through_the_same_door(tmp_path: Path) -> None:
    encoder = load_encoder(str(save_model("bert", tmp_path)))
    assert encoder.encode(TEXTS).shape == (len(TEXTS), 32)


CHANGES: dict[str, dict[str, Any]] = {
    "attention": {"attention": "causal"},
    "pooling": {"pooling": "weighted_mean"},
    "prompts": {"prompts": Prompts(instructions={"query": "Find it"})},
    "max_length": {"max_length": 100},
    "normalize": {"normalize": False},
    "dim": {"dim": 16},
}


@pytest.mark.parametrize(("field", "settings"), CHANGES.items())
def test_the_fingerprint_changes_with_each_setting(
    field: str, settings: dict[str, Any], llama: Path, encoder: TextEncoder
) -> None:
    mine, other = encoder.fingerprint, TextEncoder.from_decoder(llama, **settings).fingerprint
    differing = [name for name in type(other).model_fields if getattr(other, name) != getattr(mine, name)]
    assert differing == [field]


def test_the_fingerprint_changes_with_the_window(llama: Path, encoder: TextEncoder) -> None:
    assert TextEncoder.from_decoder(llama, attention_window="full").fingerprint != encoder.fingerprint


def test_the_fingerprint_changes_with_the_weights(tmp_path: Path, encoder: TextEncoder) -> None:
    other = TextEncoder.load(tiny_llama(tmp_path, seed=7)).fingerprint
    assert other.weights != encoder.fingerprint.weights and other.tokenizer == encoder.fingerprint.tokenizer


def test_the_fingerprint_changes_with_the_tokenizer(llama: Path, tmp_path: Path, encoder: TextEncoder) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "copy"))
    tiny_tokenizer(folder, bos=False)
    other = TextEncoder.load(folder).fingerprint
    assert other.tokenizer != encoder.fingerprint.tokenizer and other.weights == encoder.fingerprint.weights


def test_dim_cuts_the_vectors(llama: Path) -> None:
    assert TextEncoder.from_decoder(llama, dim=16).encode(SENTENCES).shape == (len(SENTENCES), 16)


@pytest.mark.parametrize("reference", ["/nowhere/encoder", "./nowhere", "nowhere"])
def test_a_missing_folder_names_the_cure(reference: str) -> None:
    with pytest.raises(UserError, match="no such folder; give the folder"):
        load_encoder(reference)


def test_a_folder_without_a_model_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_encoder(str(tmp_path))


def test_a_model_without_a_tokenizer_names_the_cure(tmp_path: Path, llama: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(llama / name, tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_encoder(str(tmp_path))


def test_a_missing_base_names_the_cure(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    TextEncoder.load(base).save(tmp_path / "encoder")
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="base=PATH"):
        TextEncoder.load(tmp_path / "encoder")
    assert TextEncoder.load(tmp_path / "encoder", base=tmp_path / "moved").dim == 32


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_damaged_file_is_found_out(file: str, copied: Path) -> None:
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(data)
    with pytest.raises(VerificationError, match=file):
        TextEncoder.load(copied)


def test_a_missing_file_is_found_out(copied: Path) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(VerificationError, match=r"config\.json is missing"):
        TextEncoder.load(copied)


@pytest.mark.parametrize(
    ("old", "new"), [('"pooling": "mean"', '"pooling": "bos"'), ('"base"', '"bass"'), ("{", "[")], ids=str
)
def test_a_manifest_changed_by_hand_is_found_out(old: str, new: str, copied: Path) -> None:
    text = (copied / "rayvec.json").read_text()
    (copied / "rayvec.json").write_text(text.replace(old, new, 1))
    with pytest.raises(VerificationError, match=r"rayvec\.json"):
        TextEncoder.load(copied)


def test_an_adapter_alone_is_told_from_a_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"LoRA adapter without its base; open it with TextEncoder\.from_llm2vec"):
        TextEncoder.load(tmp_path)


def test_an_unknown_dtype_lists_the_known_ones(llama: Path) -> None:
    with pytest.raises(UserError, match="bfloat16"):
        TextEncoder.load(llama, dtype="fp4")


def test_more_tokens_than_the_model_has_positions_are_the_users_mistake(llama: Path) -> None:
    longest = family_config("llama").max_position_embeddings
    with pytest.raises(UserError, match="positions"):
        TextEncoder.from_decoder(llama, max_length=longest + 1)


def test_half_precision_stays_near(llama: Path, encoder: TextEncoder) -> None:
    half = TextEncoder.load(llama, dtype="bfloat16").encode(SENTENCES)
    assert (half * encoder.encode(SENTENCES)).sum(1).min() > 0.99


def test_more_or_less_of_a_text_is_read_by_the_same_encoder(saved: Path) -> None:
    alone = load_tokenizer_only(str(saved))
    shorter = alone.reading(10)
    assert (shorter.max_length, shorter.tokenize(TEXTS).lengths.max()) == (10, 10)
    assert alone.max_length == 512 and alone.tokenize(["a " * 600]).lengths.tolist() == [512]
    with pytest.raises(UserError, match="max_length 513 is more than the model's 512 positions"):
        alone.reading(513)
