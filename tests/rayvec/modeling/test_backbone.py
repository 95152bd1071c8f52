from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rayvec.errors import UserError
from rayvec.modeling.backbone import Backbone, prepare
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.tokens import TokenBatch
from tests.models import FAMILIES, family_config, save_model

LENGTHS = (3, 17, 9, 17, 3, 40)  # longer than the windows of the windowed families, equal and unequal
RANDOM = np.random.default_rng(0)
ROWS = [RANDOM.integers(5, 512, length).astype(np.int32) for length in LENGTHS]
TOLERANCE = 1e-5


def pack(rows: list[np.ndarray]) -> PackedBatch:
    return PackedBatch.from_tokens(TokenBatch.from_rows(rows))


def states(backbone: Backbone, rows: list[np.ndarray], causal: bool | None = None) -> Tensor:
    with torch.inference_mode():
        return backbone.hidden_states(pack(rows), causal=causal)


def moves(backbone: Backbone, causal: bool | None = None) -> bool:
    """Whether changing the last token of a text changes the state of its first."""
    changed = ROWS[2].copy()
    changed[-1] = 7 if changed[-1] != 7 else 8
    first, second = (states(backbone, [row], causal)[0] for row in (ROWS[2], changed))
    return not torch.allclose(first, second, atol=1e-6)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Iterator[Backbone]:
    yield Backbone.load(folder)


def test_every_family_is_packed(backbone: Backbone) -> None:
    assert backbone.packed


def test_d5_the_last_token_moves_the_first(backbone: Backbone) -> None:
    assert moves(backbone)


def test_d1_what_else_is_in_the_batch_changes_nothing(backbone: Backbone) -> None:
    alone = torch.cat([states(backbone, [row]) for row in ROWS])
    assert (states(backbone, ROWS) - alone).abs().max() <= TOLERANCE


def test_packed_states_are_those_of_plain_transformers(folder: Path, backbone: Backbone) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.is_causal = False
    with torch.inference_mode():
        plain = [model(torch.from_numpy(row.astype(np.int64))[None]).last_hidden_state[0] for row in ROWS]
    assert (states(backbone, ROWS) - torch.cat(plain)).abs().max() <= TOLERANCE


def test_the_padded_path_gives_the_same(folder: Path, backbone: Backbone) -> None:
    padded = Backbone.load(folder)
    padded.use_padding()
    assert not padded.packed
    assert (states(padded, ROWS) - states(backbone, ROWS)).abs().max() <= TOLERANCE


def test_causal_use_loads_through_the_same_door(folder: Path) -> None:
    assert not moves(Backbone.load(folder, attention="causal"))


def test_one_call_may_read_the_other_way(folder: Path, backbone: Backbone) -> None:
    causal = states(Backbone.load(folder, attention="causal"), ROWS)
    assert (states(backbone, ROWS, causal=True) - causal).abs().max() <= TOLERANCE
    assert moves(backbone)  # and the next call reads as before


def test_gradients_through_a_pack_are_those_of_the_texts_alone(backbone: Backbone) -> None:
    gradients = []
    for batches in ([ROWS[:4]], [[row] for row in ROWS[:4]]):
        backbone.zero_grad()
        for rows in batches:
            # Not all squares: the last normalisation makes their sum a constant.
            backbone(pack(rows))[:, :8].square().sum().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in backbone.parameters()])
    backbone.zero_grad()
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 + 1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_pack_first_read_in_inference_mode_can_be_trained_on(family: str, padded: bool, tmp_path: Path) -> None:
    backbone = Backbone.load(save_model(family, tmp_path))
    if padded:
        backbone.use_padding()
    with torch.inference_mode():
        packed = pack(ROWS)
        backbone(packed)
    backbone(packed)[:, :8].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral", "gpt2"])
def test_logits_at_positions_are_the_causal_models_own(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_model(family, tmp_path)
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    backbone = Backbone.load(folder, attention="causal", head=True)
    with torch.inference_mode():
        expected = own(torch.from_numpy(ROWS[1].astype(np.int64))[None]).logits[0, [2, 11]]
        found = backbone.logits_at(states(backbone, [ROWS[1]]), torch.tensor([2, 11]))
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_full_window_lets_every_token_see_every_other(family: str, tmp_path: Path) -> None:
    folder = save_model(family, tmp_path)
    keep, full = (Backbone.load(folder, attention_window=window) for window in ("keep", "full"))
    assert not torch.allclose(states(keep, [ROWS[5]]), states(full, [ROWS[5]]), atol=1e-3)
    assert torch.allclose(states(keep, [ROWS[0]]), states(full, [ROWS[0]]), atol=1e-5)  # within the window


@pytest.mark.parametrize(("family", "why"), [("stablelm", "stays causal without padding"), ("qwen3_next", "layer 0")])
def test_d5_a_model_that_stays_causal_is_refused(family: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{why}.*attention=causal"):
        Backbone.load(save_model(family, tmp_path))


@pytest.mark.parametrize("family", ["stablelm", "qwen3_next"])
def test_a_model_that_cannot_pack_falls_back_to_padding(family: str, tmp_path: Path) -> None:
    backbone = Backbone.load(save_model(family, tmp_path), attention="causal")
    alone = torch.cat([states(backbone, [row]) for row in ROWS])
    assert not backbone.packed
    assert (states(backbone, ROWS) - alone).abs().max() <= 1e-4


def test_attention_that_leaks_between_texts_is_found_out(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PackedBatch.groups

    def one_group(packed: PackedBatch) -> object:
        joined = TokenBatch.from_rows([np.zeros(len(packed.input_ids_T), np.int32)])
        return whole.__get__(PackedBatch.from_tokens(joined))

    monkeypatch.setattr(PackedBatch, "groups", property(one_group))
    assert not Backbone.load(llama).packed


def test_positions_that_begin_elsewhere_are_found_out(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    RobertaModel(RobertaConfig(**sizes, vocab_size=512, pad_token_id=1, max_position_embeddings=64)).save_pretrained(
        tmp_path
    )
    assert Backbone.load(tmp_path).position_offset == 2


def test_the_configuration_given_is_never_changed() -> None:
    config = family_config("mistral")
    before = copy.deepcopy(config.to_dict())
    prepare(config, "bidirectional", "full", 0.3)
    Backbone.create(config)
    assert config.to_dict() == before


def test_attention_dropout_acts_in_training_alone(llama: Path) -> None:
    backbone = Backbone.load(llama, attention_dropout=0.3)
    assert torch.equal(states(backbone, ROWS), states(backbone, ROWS))
    backbone.train()
    assert not torch.equal(states(backbone, ROWS), states(backbone, ROWS))


@pytest.mark.parametrize(
    ("family", "places"),
    [
        ("llama", "attention (attention_dropout=0.3)"),
        ("gpt2", "attention (attn_pdrop=0.3)"),
        ("bert", "attention (attention_probs_dropout_prob=0.3)"),
    ],
)
def test_dropout_goes_into_attention_where_the_family_has_it(family: str, places: str, tmp_path: Path) -> None:
    backbone = Backbone.load(save_model(family, tmp_path), attention_dropout=0.3, attention="native")
    assert backbone.dropout_in == places


def test_dropout_goes_elsewhere_where_the_family_has_none_in_attention(tmp_path: Path) -> None:
    from transformers import CTRLConfig, CTRLModel

    CTRLModel(CTRLConfig(vocab_size=64, n_positions=32, n_embd=16, dff=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    backbone = Backbone.load(tmp_path, attention_dropout=0.3, attention="native")
    assert backbone.dropout_in == "hidden (resid_pdrop=0.3, embd_pdrop=0.3)"
    assert torch.equal(torch.rand(1), expected)  # finding out draws no random number


def test_a_family_without_dropout_is_told() -> None:
    from transformers import MambaConfig

    with pytest.raises(UserError, match="mamba models have no dropout to set"):
        prepare(MambaConfig(), "native", "keep", 0.3)


def test_whether_two_training_passes_differ_is_found_out(llama: Path) -> None:
    assert not Backbone.load(llama).is_noisy() and not Backbone.load(llama, attention_dropout=0.0).is_noisy()
    backbone = Backbone.load(llama, attention_dropout=0.3)
    assert backbone.is_noisy() and not backbone.training


def test_a_fresh_decoder_is_causal_and_keeps_its_head() -> None:
    backbone = Backbone.create(family_config("llama"))
    assert backbone.head is not None and not moves(backbone)


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "no_such_model"}'])
def test_a_folder_without_a_model_is_the_users_mistake(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        Backbone.load(tmp_path)


def test_missing_weights_are_not_filled_with_noise(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(UserError, match="lacks weights"):
        Backbone.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 2000])
def test_weights_that_are_cut_short_are_told(llama: Path, tmp_path: Path, kept: int) -> None:
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:kept])
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"the weights of .* are damaged .*; fetch them again"):
        Backbone.load(tmp_path)
