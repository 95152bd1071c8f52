"""Shapes: a model's own configuration before the published one, and none where nothing is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvec.training.shapes import PUBLISHED, find_shape
from tests.models import tiny_llama


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    shape = find_shape(str(tiny_llama(tmp_path / "base")))
    assert shape is not None
    assert (shape.config.hidden_size, shape.source) == (32, "its folder")


def test_embedded_models_are_known_by_name() -> None:
    for name in ("tiny-decoder", "tiny", "embedded:tiny-encoder"):
        shape = find_shape(name)
        assert shape is not None
        assert (shape.config.num_hidden_layers, shape.source) == (6, "embedded")


def test_a_published_shape_serves_until_the_model_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Qwen/Qwen3-0.6B"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shape = find_shape(name)
    assert shape is not None
    assert (shape.config.num_hidden_layers, shape.source) == (28, "as published")
    repository = tmp_path / "models--Qwen--Qwen3-0.6B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    text = (PUBLISHED / "Qwen--Qwen3-0.6B.json").read_text(encoding="utf-8")
    (repository / "snapshots" / "abc" / "config.json").write_text(text.replace('layers": 28', 'layers": 3'))
    shape = find_shape(name)
    assert shape is not None
    assert (shape.config.num_hidden_layers, shape.source) == (3, "the Hugging Face cache")


@pytest.mark.parametrize("reference", ["", "somebody/unknown-7B", "no/such/folder", "s3://bucket/model"])
def test_what_is_not_known_is_none(reference: str) -> None:
    assert find_shape(reference) is None
