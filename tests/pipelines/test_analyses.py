"""The looks inside: the map of the mask, the prefix test, their files; small random models, whose truths are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.measure import command
from pipelines.analyses import MaskMapConfig, PrefixConfig, measure_mask, measure_prefixes
from rayvec.errors import UserError
from rayvec.evaluation.mask_map import mask_map
from rayvec.evaluation.prefix_test import Triple, prefix_test, read_triples
from rayvec.modeling.batching import PackedBatch
from rayvec.modeling.encoder import TextEncoder
from tests.models import save_model

TEXTS = [f"Return the number {i} of elements in the list, or raise ValueError when it is missing." for i in range(12)]
WORDS = ("apple", "river", "engine", "stone", "bird")
TRIPLES = [Triple("The bank", "of the river was green.", "of the river was wet.", "lent him money for a house.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("analyses")
    save_model("llama", folder / "llama")
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(TEXTS))
    )
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_states_of_each_layer_end_in_the_last_ones(family: str, tmp_path: Path) -> None:
    encoder = TextEncoder.from_decoder(save_model(family, tmp_path), device="cpu")
    packed = PackedBatch.from_tokens(encoder.tokenize(TEXTS[:3]))
    for causal in (True, False):
        states = encoder.backbone.layer_states(packed, causal=causal).detach()
        assert states.shape == (3, len(packed.input_ids_T), 32)
        np.testing.assert_array_equal(states[-1], encoder.backbone.hidden_states(packed, causal=causal).detach())
    assert not [layer for layer in encoder.backbone._layers() if layer._forward_pre_hooks]


def test_the_map_of_a_model_begins_at_one_and_falls(folder: Path) -> None:
    encoder = TextEncoder.from_decoder(folder / "llama", device="cpu")
    found = mask_map(encoder, encoder.tokenize(TEXTS))
    assert found.cosines_LP.shape == (3, 10)
    np.testing.assert_allclose(found.cosines_LP[0], 1.0, atol=1e-6)
    assert (found.layers[1:] < 0.999).all()
    # The first token sees one token causally and all without the mask; a late one sees nearly the same either way.
    assert found.cosines_LP[-1, 0] < found.cosines_LP[-1, -1]
    assert found.tokens == sum(len(encoder.tokenize([text]).row(0)) - 1 for text in TEXTS)


def test_the_map_is_the_same_whatever_way_the_encoder_reads(folder: Path) -> None:
    maps = []
    for attention in ("causal", "bidirectional"):
        encoder = TextEncoder.from_decoder(folder / "llama", attention=attention, device="cpu")
        maps.append(mask_map(encoder, encoder.tokenize(TEXTS)).cosines_LP)
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)


@pytest.mark.parametrize("token_budget", [1, 60])
def test_tokens_of_different_texts_are_as_alike_in_small_batches(folder: Path, token_budget: int) -> None:
    """A batch of one text has no other text in it."""
    texts = [f"{'Return the number of elements in the list. ' * (1 + i)}{WORDS[i]}" for i in range(len(WORDS))]
    whole, parts = (
        TextEncoder.from_decoder(folder / "llama", device="cpu", token_budget=budget)
        for budget in (100_000, token_budget)
    )
    expected = mask_map(whole, whole.tokenize(texts)).unrelated_L
    assert (np.abs(expected) > 0.01).all()
    np.testing.assert_allclose(mask_map(parts, parts.tokenize(texts)).unrelated_L, expected, atol=1e-5)
    alone = mask_map(whole, whole.tokenize(texts[:1]))
    assert alone.unrelated_L.tolist() == [0.0] * len(expected)


def test_a_causal_beginning_knows_nothing_of_its_end(folder: Path) -> None:
    triples = [*TRIPLES, *read_triples()]
    causal = prefix_test(TextEncoder.from_decoder(folder / "llama", attention="causal", device="cpu"), triples)
    np.testing.assert_allclose(causal.same_N, 1.0, atol=1e-5)
    assert causal.wins.mean == 0.5
    both = prefix_test(TextEncoder.from_decoder(folder / "llama", device="cpu"), triples)
    assert (both.same_N < 0.9999).all() and (both.other_N < 0.9999).all()


def test_the_triples_that_come_with_rayvec_are_whole() -> None:
    triples = read_triples()
    assert len(triples) == len({triple.prefix + triple.text for triple in triples}) >= 35
    assert all(len({triple.text, triple.same, triple.other}) == 3 for triple in triples)


def test_the_map_s_report_is_written(folder: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "system": {"name": "small", "encoder": str(folder / "llama")},
        "source": {"path": str(folder / "texts.jsonl")},
        "output": str(tmp_path / "m.json"),
    }
    report = measure_mask(MaskMapConfig.parse(values))
    assert json.loads((tmp_path / "m.json").read_text()) == report
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert report["lowest"]["cosine"] == min(report["layers"])
    with pytest.raises(UserError, match="x has no model whose states"):
        measure_mask(MaskMapConfig.parse({**values, "system": {"name": "x", "encoder": "hash"}}))


def test_the_job_prints_the_prefix_test(folder: Path, tmp_path: Path) -> None:
    systems = [
        {"name": "Uni", "attention": "causal"},
        {"name": "Bi", "attention": "bidirectional"},
    ]
    config = PrefixConfig.parse(
        {"encoder": str(folder / "llama"), "systems": systems, "output": str(tmp_path / "p.json")}
    )
    (tmp_path / "p.yaml").write_text(config.to_yaml())
    found = CliRunner().invoke(command, ["--config", str(tmp_path / "p.yaml")])
    assert found.exit_code == 0, found.output
    assert "| Uni    | 0.500 [0.500, 0.500] | +0.0000" in found.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="systems are required"):
        measure_prefixes(config.replace(systems=()))
