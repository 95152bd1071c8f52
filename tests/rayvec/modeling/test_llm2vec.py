"""Folders as McGill-NLP/llm2vec saves them, made here with peft, against its arithmetic, one text at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayvec.errors import MismatchError, UserError
from rayvec.modeling import adapters
from rayvec.modeling.backbone import Backbone
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.trainable import open_for_training
from tests.models import SENTENCES, save_model, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft 0.21 with transformers 5.23

INSTRUCTION = " Find the function that answers: "
LONG = " ".join(SENTENCES[:4]) * 3
CHINESE = "今天天气很好，我们去公园散步。" * 31
TEXTS = [*SENTENCES, LONG, CHINESE, "", "ends in spaces  \n", "holds !@#$%^&*() what the reference cuts at"]
# What the reference writes around instruction and text, by the base's name (section 1.4 of its description).
WRAPPINGS = {
    "princeton-nlp/Sheared-LLaMA-1.3B": ("", ""),
    "meta-llama/Meta-Llama-3.1-8B-Instruct": ("", ""),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistralai/Mistral-7B-Instruct-v0.2": ("[INST] ", " [/INST]"),
    "google/gemma-2-9b-it": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "Qwen/Qwen2-7B-Instruct": ("<|im_start|>user\n", "<|im_end|>"),
}
PLAIN = "princeton-nlp/Sheared-LLaMA-1.3B"


@dataclass(frozen=True)
class Folders:
    """A base and what was published on top of it."""

    base: Path
    mntp: Path
    simcse: Path


def merged(base: Path, *folders: Path) -> Any:
    """The base as plain transformers loads it, with adapters merged by peft."""
    from peft import PeftModel
    from transformers import AutoModel

    model = AutoModel.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    for folder in folders:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model.eval()


def publish(model: Any, path: Path, *, seed: int, base_name: str, **settings: Any) -> Path:
    """Save an adapter of the seven projections on a model as the reference does, with its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(adapters.PROJECTIONS), init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(path))
    edit(path / adapters.SETTINGS, base_model_name_or_path=base_name)
    tiny_tokenizer(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    tokenizer.save_pretrained(path)
    if settings:
        (path / "llm2vec_config.json").write_text(json.dumps(settings))
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copied(folders: Folders, path: Path, *, base_name: str = PLAIN, **settings: Any) -> Folders:
    """The same folders elsewhere, saying another base and other settings."""
    result = Folders(folders.base, path / "mntp", path / "simcse")
    for source, target in ((folders.mntp, result.mntp), (folders.simcse, result.simcse)):
        shutil.copytree(source, target)
        edit(target / adapters.SETTINGS, base_model_name_or_path=base_name)
    (result.simcse / "llm2vec_config.json").write_text(json.dumps(settings))
    return result


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    path = tmp_path_factory.mktemp("published")
    base = tiny_llama(path / "base")
    tiny_tokenizer(base, bos=False)  # not the adapters' tokenizer: theirs has to be used
    mntp = publish(merged(base), path / "x-mntp", seed=1, base_name=str(base))
    simcse = publish(merged(base, mntp), path / "x-mntp-unsup-simcse", seed=2, base_name=str(base), max_length=512)
    return Folders(base, mntp, simcse)


@pytest.fixture(scope="module")
def reference(folders: Folders) -> Any:
    return merged(folders.base, folders.mntp, folders.simcse)


def reference_vector(
    model: Any,
    tokenizer: Any,
    text: str,
    instruction: str | None = None,
    *,
    wrapping: tuple[str, str] = ("", ""),
    ending: str = "",
    pooling_mode: str = "mean",
    max_length: int = 512,
    doc_max_length: int = 400,
    skip_instruction: bool = True,
) -> np.ndarray:
    """The reference's vector of one text in a batch of its own, step by step as its description says."""

    def ids(string: str, **options: Any) -> list[int]:
        return tokenizer(string, truncation=True, max_length=max_length, **options)["input_ids"]

    while (n := len(ids(text, add_special_tokens=False))) > doc_max_length:
        ratio = doc_max_length / n
        text = " ".join(text.split()[: int(len(text.split()) * ratio)])
    string = f"{instruction.strip()} !@#$%^&*(){text}" if instruction else f"!@#$%^&*(){text}"
    if wrapping != ("", ""):
        string = wrapping[0] + string.strip() + wrapping[1]
    if ending:
        string = string.strip() + ending
    parts = string.split("!@#$%^&*()")
    row = ids("".join(parts))
    own = len(ids(parts[1], add_special_tokens=False))
    mask = [0] * len(row)
    if own:
        mask[-own:] = [1] * min(own, len(row))
    length = sum(mask) if skip_instruction else len(row)
    nothing_masked = torch.zeros(1, 1, len(row), len(row))
    with torch.inference_mode():
        states = model(torch.tensor([row]), attention_mask=nothing_masked).last_hidden_state[0]
    last = states[-length:]  # with length 0 the whole row: defect D1, of one text
    if pooling_mode == "weighted_mean":
        weights = torch.arange(1, len(last) + 1) / (len(last) * (len(last) + 1) / 2)
        return (last * weights[:, None]).sum(0).numpy()
    return {"mean": last.mean(0), "eos_token": states[-1], "last_token": states[-1], "bos_token": states[0]}[
        pooling_mode
    ].numpy()


def largest_difference(
    encoder: TextEncoder, model: Any, folder: Path, instruction: str | None, texts: list[str] = TEXTS, **rules: Any
) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [reference_vector(model, tokenizer, text, instruction, **rules) for text in texts]
    return float(np.abs(encoder.encode(texts, instruction) - np.stack(expected)).max())


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_compat_gives_the_references_vectors(
    folders: Folders, reference: Any, tmp_path: Path, name: str, instruction: str | None
) -> None:
    settings = {"pooling_mode": "mean", "max_length": 512, "doc_max_length": 100, "skip_instruction": True}
    there = copied(folders, tmp_path, base_name=name, **settings)
    encoder = TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base, compat="llm2vec")
    rules = {"wrapping": WRAPPINGS[name], "doc_max_length": 100}
    assert largest_difference(encoder, reference, there.mntp, instruction, **rules) <= 1e-5


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
@pytest.mark.parametrize("pooling_mode", ["mean", "weighted_mean", "eos_token", "last_token", "bos_token"])
def test_compat_gives_the_references_vectors_for_each_pooling(
    folders: Folders, reference: Any, tmp_path: Path, pooling_mode: str, instruction: str | None
) -> None:
    there = copied(folders, tmp_path, pooling_mode=pooling_mode, doc_max_length=100)
    encoder = TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base, compat="llm2vec")
    ending = " </s>" if pooling_mode == "eos_token" else ""
    rules = {"pooling_mode": pooling_mode, "ending": ending, "doc_max_length": 100}
    # Weights over no token at all give the reference a vector of zeros for an empty text; nobody needs that.
    texts = [text for text in TEXTS if text and text != CHINESE]
    assert largest_difference(encoder, reference, there.mntp, instruction, texts, **rules) <= 1e-5


def test_compat_repeats_d2_pooling_into_the_instruction_after_truncation(
    folders: Folders, reference: Any, tmp_path: Path
) -> None:
    rules: dict[str, Any] = {"max_length": 24, "doc_max_length": 20}
    there = copied(folders, tmp_path, **rules)
    encoder = TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base, compat="llm2vec")
    batch = encoder.tokenize([LONG], INSTRUCTION)
    assert batch.lengths.tolist() == [24] and bool(batch.truncated[0])
    before = len(encoder.folder.tokenizer.tokenizer(INSTRUCTION.strip()).input_ids)
    assert int(batch.pool_start[0]) < before
    assert largest_difference(encoder, reference, there.mntp, INSTRUCTION, **rules) <= 1e-5


def test_compat_can_pool_the_instruction(folders: Folders, reference: Any, tmp_path: Path) -> None:
    there = copied(folders, tmp_path, skip_instruction=False)
    encoder = TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base, compat="llm2vec")
    assert largest_difference(encoder, reference, there.mntp, INSTRUCTION, skip_instruction=False) <= 1e-5
    with pytest.raises(UserError, match="only compat='llm2vec' pools instructions"):
        TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base)


def test_the_mntp_adapter_alone_is_an_encoder(folders: Folders) -> None:
    encoder = TextEncoder.from_llm2vec(folders.mntp, compat="llm2vec")
    model = merged(folders.base, folders.mntp)
    assert largest_difference(encoder, model, folders.mntp, INSTRUCTION) <= 1e-5


def test_a_window_of_the_base_is_opened(tmp_path: Path) -> None:
    base = save_model("mistral", tmp_path / "base")  # a window of 4 tokens
    mntp = publish(merged(base), tmp_path / "mntp", seed=1, base_name=str(base))
    model = merged(base, mntp)
    encoder = TextEncoder.from_llm2vec(mntp, compat="llm2vec")
    assert encoder.folder.manifest.attention_window == "full"
    assert largest_difference(encoder, model, mntp, INSTRUCTION) <= 1e-5


def test_without_compat_texts_are_read_as_everywhere_here(folders: Folders, tmp_path: Path) -> None:
    there = copied(folders, tmp_path, base_name="mistralai/Mistral-7B-Instruct-v0.2", max_length=64)
    encoder = TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base)
    batch = encoder.tokenize([SENTENCES[0], CHINESE], INSTRUCTION)
    spans = zip(batch.pool_start, batch.pool_end, strict=True)
    own = [encoder.folder.tokenizer.tokenizer.decode(batch.row(i)[a:b]) for i, (a, b) in enumerate(spans)]
    assert own[0].strip() == SENTENCES[0] and own[1].strip().rstrip("\ufffd") in CHINESE  # no [/INST], no empty text
    assert np.allclose(np.linalg.norm(encoder.encode(SENTENCES), axis=1), 1.0, atol=1e-5)
    assert (
        encoder.fingerprint
        != TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base, compat="llm2vec").fingerprint
    )


def test_both_read_with_the_same_weights(folders: Folders) -> None:
    ours = TextEncoder.from_llm2vec(folders.mntp, folders.simcse)
    reference = TextEncoder.from_llm2vec(folders.mntp, folders.simcse, compat="llm2vec")
    assert ours.fingerprint.weights == reference.fingerprint.weights
    vectors = reference.encode(SENTENCES)
    assert np.abs(ours.encode(SENTENCES) - vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).max() <= 1e-5


@pytest.mark.parametrize("merge", [False, True])
def test_what_is_saved_is_an_encoder_folder_like_any_other(folders: Folders, tmp_path: Path, merge: bool) -> None:
    encoder = TextEncoder.from_llm2vec(folders.mntp, folders.simcse, compat="llm2vec")
    encoder.save(tmp_path / "encoder", merged=merge)
    loaded = TextEncoder.load(tmp_path / "encoder")
    assert loaded.fingerprint == encoder.fingerprint
    assert [adapter.stage for adapter in loaded.folder.manifest.adapters] == ["mntp", "simcse"]
    assert np.abs(loaded.encode(TEXTS, INSTRUCTION) - encoder.encode(TEXTS, INSTRUCTION)).max() <= 1e-5


def test_the_next_stage_trains_on_top_and_keeps_the_reading(folders: Folders, tmp_path: Path) -> None:
    TextEncoder.from_llm2vec(folders.mntp, compat="llm2vec").save(tmp_path / "a")
    open_for_training(tmp_path / "a", lora=adapters.LoraSettings(rank=4)).save(tmp_path / "b", stage="simcse")
    loaded = TextEncoder.load(tmp_path / "b")
    expected = TextEncoder.from_llm2vec(folders.mntp, compat="llm2vec").encode(TEXTS)
    assert np.abs(loaded.encode(TEXTS) - expected).max() <= 1e-5  # a fresh LoRA says nothing yet


def test_llm2vec_config_gives_pooling_and_length(folders: Folders, tmp_path: Path) -> None:
    there = copied(folders, tmp_path, pooling_mode="weighted_mean", max_length=77)
    encoder = TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base)
    assert (encoder.fingerprint.pooling, encoder.max_length) == ("weighted_mean", 77)


@pytest.mark.parametrize("settings", [{"pooling_mode": "median"}, {"max_length": 0}, {"window": 3}])
def test_llm2vec_config_with_mistakes_is_named(folders: Folders, tmp_path: Path, settings: dict[str, Any]) -> None:
    there = copied(folders, tmp_path, **settings)
    with pytest.raises(UserError, match=rf"llm2vec_config\.json: .*{next(iter(settings))}"):
        TextEncoder.from_llm2vec(there.mntp, there.simcse, base=there.base)


def test_the_adapters_tokenizer_is_used_before_the_bases(folders: Folders) -> None:
    assert TextEncoder.from_llm2vec(folders.mntp).tokenize(["a"]).row(0)[0] == 1  # <s>, which the base's does not put
    bare = TextEncoder.load(folders.base)
    assert bare.tokenize(["a"]).row(0)[0] != 1


def test_a_second_adapter_that_names_its_mntp_folder_can_be_given_alone(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.simcse, tmp_path / "y-mntp-unsup-simcse")
    edit(tmp_path / "y-mntp-unsup-simcse" / adapters.SETTINGS, base_model_name_or_path=str(folders.mntp))
    alone = TextEncoder.from_llm2vec(tmp_path / "y-mntp-unsup-simcse")
    both = TextEncoder.from_llm2vec(folders.mntp, tmp_path / "y-mntp-unsup-simcse")
    assert alone.fingerprint == both.fingerprint
    assert np.array_equal(alone.encode(SENTENCES), both.encode(SENTENCES))


def test_d6_a_second_adapter_that_does_not_say_its_mntp_folder_is_refused_alone(folders: Folders) -> None:
    with pytest.raises(UserError, match="trained on top of an MNTP adapter"):
        TextEncoder.from_llm2vec(folders.simcse)


def test_d6_a_second_adapter_of_another_mntp_folder_is_refused(folders: Folders, tmp_path: Path) -> None:
    other = publish(merged(folders.base), tmp_path / "other", seed=9, base_name=str(folders.base))
    shutil.copytree(folders.simcse, tmp_path / "simcse")
    edit(tmp_path / "simcse" / adapters.SETTINGS, base_model_name_or_path=str(folders.mntp))
    with pytest.raises(MismatchError, match=r"not on .*other"):
        TextEncoder.from_llm2vec(other, tmp_path / "simcse")


def test_a_base_of_another_size_is_refused(folders: Folders, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for number, change in enumerate(({"intermediate_size": 40}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3})):
        config = AutoConfig.from_pretrained(folders.base)
        config.update(change)
        if config.num_hidden_layers != 2:
            config.layer_types = None
        path = tmp_path / str(number)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        with pytest.raises(MismatchError, match=r"mntp does not fit the model .* in order"):
            TextEncoder.from_llm2vec(folders.mntp, base=path)


def test_an_adapter_given_as_the_base_is_the_users_mistake(folders: Folders) -> None:
    with pytest.raises(UserError, match="is an adapter, no base"):
        TextEncoder.from_llm2vec(folders.mntp, base=folders.simcse)


@pytest.mark.parametrize("base_name", [None, "/nowhere/llama"])
def test_a_base_that_is_not_there_is_asked_for(folders: Folders, tmp_path: Path, base_name: str | None) -> None:
    shutil.copytree(folders.mntp, tmp_path / "mntp")
    edit(tmp_path / "mntp" / adapters.SETTINGS, base_model_name_or_path=base_name)
    with pytest.raises(UserError, match="give base=PATH"):
        TextEncoder.from_llm2vec(tmp_path / "mntp")


def test_a_folder_that_is_no_adapter_is_the_users_mistake(folders: Folders) -> None:
    with pytest.raises(UserError, match="is no adapter"):
        TextEncoder.from_llm2vec(folders.base)


@pytest.fixture
def hub(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on a machine without a network, as its client fills it, with the published names."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repositories = {
        "meta-llama--Llama-2-7b-chat-hf": (folders.base, None),
        "McGill-NLP--x-mntp": (folders.mntp, "meta-llama/Llama-2-7b-chat-hf"),
        "McGill-NLP--x-mntp-supervised": (folders.simcse, "McGill-NLP/x-mntp"),
        "McGill-NLP--y-mntp": (folders.mntp, "meta-llama/Llama-2-7b-chat-hf"),
        "McGill-NLP--y-mntp-supervised": (folders.simcse, "meta-llama/Llama-2-7b-chat-hf"),
    }
    for name, (folder, below) in repositories.items():
        snapshot = tmp_path / f"models--{name}" / "snapshots" / "0123abc"
        shutil.copytree(folder, snapshot)
        (tmp_path / f"models--{name}" / "refs").mkdir()
        (tmp_path / f"models--{name}" / "refs" / "main").write_text("0123abc")
        if below:
            edit(snapshot / adapters.SETTINGS, base_model_name_or_path=below)
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        ["McGill-NLP/x-mntp", "McGill-NLP/x-mntp-supervised"],
        ["McGill-NLP/y-mntp", "McGill-NLP/y-mntp-supervised"],
        ["McGill-NLP/x-mntp-supervised"],
    ],
)
def test_published_names_are_followed_down_to_the_base(
    hub: Path, reference: Any, tmp_path: Path, names: list[str]
) -> None:
    encoder = TextEncoder.from_llm2vec(*names, compat="llm2vec")
    manifest = encoder.folder.manifest
    assert manifest.base == "meta-llama/Llama-2-7b-chat-hf"
    assert [adapter.stage for adapter in manifest.adapters] == ["mntp", "supervised"]
    wrapping = WRAPPINGS["mistralai/Mistral-7B-Instruct-v0.2"]
    snapshot = hub / "models--McGill-NLP--x-mntp" / "snapshots" / "0123abc"
    assert largest_difference(encoder, reference, snapshot, INSTRUCTION, wrapping=wrapping) <= 1e-5
    encoder.save(tmp_path / "encoder")
    assert TextEncoder.load(tmp_path / "encoder").fingerprint == encoder.fingerprint


def test_the_revision_that_an_adapter_names_is_followed(hub: Path) -> None:
    settings = hub / "models--McGill-NLP--y-mntp" / "snapshots" / "0123abc" / adapters.SETTINGS
    (hub / "models--meta-llama--Llama-2-7b-chat-hf" / "refs" / "v1.0").write_text("0123abc")
    edit(settings, revision="v1.0")
    encoder = TextEncoder.from_llm2vec("McGill-NLP/y-mntp", "McGill-NLP/y-mntp-supervised", compat="llm2vec")
    assert encoder.folder.manifest.base == "meta-llama/Llama-2-7b-chat-hf@v1.0"


@pytest.mark.usefixtures("hub")
def test_d6_published_names_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(MismatchError, match="trained on McGill-NLP/x-mntp, not on McGill-NLP/y-mntp"):
        TextEncoder.from_llm2vec("McGill-NLP/y-mntp", "McGill-NLP/x-mntp-supervised")


@pytest.mark.usefixtures("hub")
def test_a_base_that_the_hub_does_not_give_is_asked_for(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.mntp, tmp_path / "mntp")
    edit(tmp_path / "mntp" / adapters.SETTINGS, base_model_name_or_path="meta-llama/not-there")
    with pytest.raises(UserError, match="trained on meta-llama/not-there; give base=PATH"):
        TextEncoder.from_llm2vec(tmp_path / "mntp")


def rewrite(folder: Path, rename: dict[str, str] | None = None, drop: str = "", also: str = "") -> None:
    """Change the keys of an adapter's weights."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / adapters.WEIGHTS)
    for old, new in (rename or {}).items():
        weights = {key.replace(old, new): value for key, value in weights.items()}
    weights = {key: value for key, value in weights.items() if not drop or drop not in key}
    if also:
        weights[also] = torch.ones(4, 32)
    save_file(weights, folder / adapters.WEIGHTS, metadata={"format": "pt"})


def test_keys_saved_with_the_vocabulary_head_fit_too(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.mntp, tmp_path / "mntp")
    rewrite(tmp_path / "mntp", {"base_model.model.": "base_model.model.model."})
    inner, outer = TextEncoder.from_llm2vec(folders.mntp), TextEncoder.from_llm2vec(tmp_path / "mntp")
    assert np.array_equal(inner.encode(SENTENCES), outer.encode(SENTENCES))


def test_peft_itself_saves_those_keys_from_a_model_with_its_head(folders: Folders, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(folders.base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path))
    assert all(key.startswith("base_model.model.model.layers.") for key in load_file(tmp_path / adapters.WEIGHTS))
    own = adapted.merge_and_unload().model.layers[1].self_attn.q_proj.weight
    ours = TextEncoder.from_llm2vec(tmp_path, base=folders.base).backbone.decoder.layers[1].self_attn.q_proj.weight
    assert torch.allclose(ours, own, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "layers.1.mlp.up_proj.lora_B"}, r"no weights for .*layers\.1\.mlp\.up_proj\.lora_B"),
        ({"also": "base_model.model.layers.7.mlp.up_proj.lora_A.weight"}, r"no place for .*layers\.7\.mlp"),
        ({"also": "base_model.model.lm_head.lora_A.weight"}, r"no place for .*lm_head"),
        ({"rename": {"base_model.model.": "base_model.model.transformer."}}, "no place for"),
    ],
)
@pytest.mark.parametrize("trainable", [False, True])
def test_a_weight_that_fits_nowhere_or_is_missing_is_no_warning_but_an_error(
    folders: Folders, tmp_path: Path, change: dict[str, Any], message: str, trainable: bool
) -> None:
    shutil.copytree(folders.mntp, tmp_path / "mntp")
    rewrite(tmp_path / "mntp", **change)
    backbone = Backbone.load(folders.base)
    with pytest.raises(MismatchError, match=message):
        if trainable:
            adapters.attach_trained(backbone, tmp_path / "mntp")
        else:
            adapters.load_merged(backbone, [tmp_path / "mntp"])
