"""Stages as modules: packed equals one text at a time, views differ, masks, gradients reach the adapter only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.train import prepare
from rayvec.data.collators import MaskedBatch
from rayvec.errors import UserError
from rayvec.modeling.adapters import LoraSettings
from rayvec.training.modules import MntpModule, SimcseModule, SupervisedModule, mask_policy
from rayvec.training.stages import Mntp, Simcse
from tests.runs import LORA, config, write_inputs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def _open(inputs: Path, folder: Path, module: type[Any], kind: str, **changes: Any) -> Any:
    run = config(inputs, folder, kind, **changes)
    prepare(run, folder)
    torch.manual_seed(0)
    opened = module(run, folder / "data", "cpu").train()
    _move_lora(opened)
    return opened


def _move_lora(module: torch.nn.Module) -> None:
    """A fresh LoRA's second factor is zero, and then so is the first one's gradient."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 0.1, generator=generator)


def _gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_packed_equals_one_text_at_a_time_with_gradients(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, MntpModule, "mntp")
    batch = module.batch_at(0)
    loss, _ = module(batch)
    loss.backward()
    packed = _gradients(module)
    module.zero_grad()
    total = torch.zeros(())
    for row in range(len(batch.texts)):
        start, stop = batch.texts.offsets[row : row + 2]
        mine = (batch.positions >= start) & (batch.positions < stop)
        text = batch.texts.select([row])
        alone = MaskedBatch(text, batch.positions[mine] - start, batch.labels[mine], [""])
        total = total + module(alone)[0] * mine.sum() / len(batch.positions)
    total.backward()
    assert float(total.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    assert set(packed) == set(_gradients(module)) and packed
    for name, gradient in _gradients(module).items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-4)


def test_only_the_adapter_trains(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, MntpModule, "mntp")
    module(module.batch_at(0))[0].backward()
    assert all("lora_" in name for name in _gradients(module))
    assert len(_gradients(module)) == 2 * 7 * 2  # two layers, seven projections, two factors


def test_masked_texts_come_back_with_the_seed_and_step(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, MntpModule, "mntp")
    first, again, other = module.batch_at(3), module.batch_at(3), module.batch_at(4)
    assert np.array_equal(first.texts.input_ids, again.texts.input_ids)
    assert not np.array_equal(first.texts.input_ids, other.texts.input_ids)
    assert first.document_ids[0].startswith("doc-")


def test_the_two_views_of_simcse_differ(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SimcseModule, "simcse")
    loss, metrics = module(module.batch_at(0))
    assert metrics["alignment"] > 1e-3
    assert float(loss.detach()) > 1e-3


def test_dropout_repeats_with_the_seed(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SimcseModule, "simcse")
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(float(module(module.batch_at(0))[0].detach()))
    assert losses[0] == losses[1]


def test_equal_views_are_refused(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SimcseModule, "simcse")
    module.backbone.eval()
    with pytest.raises(UserError, match="both views of each text are the same"):
        module(module.batch_at(0))


def test_simcse_without_dropout_is_refused_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="both views are the same"):
        Simcse(attention_dropout=0.0, lora=LoraSettings(dropout=0.0))


def test_supervised_equals_a_plain_computation(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SupervisedModule, "supervised")
    batch = module.batch_at(0)
    loss, _ = module(batch)
    with torch.no_grad():
        vectors = module.encoder.vectors(module.pack(batch)).double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    queries, documents, keys = vectors[:8], vectors[8:], batch.keys
    total = 0.0
    for i, query in enumerate(queries):
        positive = keys[8 + i]
        counted = [j for j in range(16) if j == i or keys[8 + j] != positive]
        scores = torch.tensor([50 * float(query @ documents[j]) for j in counted], dtype=torch.float64)
        total += float(torch.logsumexp(scores, 0) - scores[counted.index(i)])
    assert float(loss.detach()) == pytest.approx(total / 8, rel=1e-4)


def test_instructions_are_read_but_not_pooled(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SupervisedModule, "supervised")
    texts = module.batch_at(0).texts
    queries, documents = texts.pool_start[:8], texts.pool_start[8:16]
    assert (queries > documents.max()).all()


def test_a_mask_token_that_is_none_is_named(inputs: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(inputs / "base")
    model = AutoConfig.from_pretrained(inputs / "base")
    assert mask_policy(tokenizer, Mntp(lora=LORA), model).mask_id == tokenizer.mask_token_id
    assert mask_policy(tokenizer, Mntp(mask_token="_"), model).mask_id == tokenizer.convert_tokens_to_ids("_")
    with pytest.raises(UserError, match="mask token 'no such token' is not in the vocabulary"):
        mask_policy(tokenizer, Mntp(mask_token="no such token"), model)
