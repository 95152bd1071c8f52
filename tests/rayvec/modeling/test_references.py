from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayvec.errors import UserError
from rayvec.modeling import references
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.references import canonical, holds, resolve, weights_sha256
from rayvec.storage import sha256_file


def test_a_folder_is_itself(llama: Path) -> None:
    assert resolve(str(llama)) == llama


def test_a_file_uri_is_its_folder(llama: Path) -> None:
    assert resolve(f"file://{llama}") == llama


def test_a_uri_is_fetched(llama: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(llama), "/models/llama", recursive=True)
    light = resolve("memory://models/llama", weights=False)
    assert (light / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()
    assert not list(light.rglob("*.safetensors"))
    assert weights_sha256(resolve("memory://models/llama")) == weights_sha256(llama)


def test_an_empty_uri_names_the_cure() -> None:
    with pytest.raises(UserError, match="check the URI"):
        resolve("memory://nowhere/model")


def test_an_unknown_embedded_model_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="tiny-decoder"):
        resolve("embedded:huge")


def test_a_hub_that_cannot_be_reached_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="give a folder"):
        resolve("someone/model")


OLD, NEW = "a" * 40, "b" * 40


def test_a_revision_stays_what_it_is(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache on a machine without a network, as its client fills it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--model"
    for commit in (OLD, NEW):
        shutil.copytree(llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    (repository / "refs" / "v1.0").write_text(OLD)
    found = {name: resolve(name).name for name in ("org/model", f"org/model@{OLD}", "org/model@v1.0")}
    assert list(found.values()) == [NEW, OLD, OLD]
    assert holds("org/model@v1.0", "config.json")
    TextEncoder.load(f"org/model@{OLD}").save(tmp_path / "encoder")
    assert TextEncoder.load(tmp_path / "encoder").folder.manifest.base == f"org/model@{OLD}"
    with pytest.raises(UserError, match="no model org/model@v2"):
        resolve("org/model@v2")


def test_embedded_models_are_named_not_placed(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    own = llama.parent / "tiny-decoder"
    own.mkdir(exist_ok=True)
    monkeypatch.setattr(references.assets, "__file__", str(llama.parent / "__init__.py"))
    assert canonical(own) == "embedded:tiny-decoder"
    assert canonical("tiny") == "embedded:tiny-encoder"


def test_a_relative_folder_is_recorded_absolutely(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.parent)
    assert canonical("llama") == str(llama.resolve())
    assert TextEncoder.load("llama").folder.manifest.base == str(llama.resolve())


def test_one_weight_file_is_hashed_as_it_is(llama: Path) -> None:
    assert weights_sha256(llama) == sha256_file(llama / "model.safetensors")


def test_weights_in_another_format_are_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="save_pretrained"):
        weights_sha256(tmp_path)


def test_what_a_reference_holds(llama: Path) -> None:
    assert holds(llama, "config.json") and not holds(llama, "adapter_config.json")
    assert holds("tiny", "rayvec.json") and not holds("memory://nowhere/model", "rayvec.json")
