"""Stages as modules: packed equals one text at a time, views differ, masks, gradients reach the adapter only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pipelines.train import prepare
from rayvec.data.collators import MaskedBatch
from rayvec.errors import UserError
from rayvec.modeling.adapters import LoraSettings
from rayvec.training.modules import MntpModule, SimcseModule, SupervisedModule, mask_policy
from rayvec.training.stages import Mntp, Simcse, Supervised
from tests.runs import LORA, assert_gradient_is_the_slope, config, write_inputs

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
    batch = module.batch_at(0)[0]
    loss, _ = module(batch)
    loss.backward()
    packed = _gradients(module)
    module.zero_grad()
    total = torch.zeros(())
    for row in range(len(batch.texts)):
        start, stop = batch.texts.offsets[row : row + 2]
        mine = (batch.positions >= start) & (batch.positions < stop)
        text = batch.texts.select([row])
        alone = MaskedBatch(text, batch.positions[mine] - start, batch.labels[mine], [""], batch.masked)
        total = total + module(alone)[0]
    total.backward()
    assert float(total.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    assert set(packed) == set(_gradients(module)) and packed
    for name, gradient in _gradients(module).items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-4)


def test_parts_add_up_to_the_batch_with_gradients(inputs: Path, tmp_path: Path) -> None:
    stage = Mntp(lora=LORA, accumulate=3)
    whole = _open(inputs, tmp_path, MntpModule, "mntp")
    loss, metrics = whole(whole.batch_at(0)[0])
    loss.backward()
    parted = _open(inputs, tmp_path, MntpModule, "mntp", stage=stage)
    parts = parted.batch_at(0)
    assert len(parts) == 3 and sum(part.tokens for part in parts) == whole.batch_at(0)[0].tokens
    losses, correct = 0.0, 0.0
    for part in parts:
        part_loss, part_metrics = parted(part)
        part_loss.backward()
        losses, correct = losses + float(part_loss.detach()), correct + part_metrics["masked_accuracy"]
    assert losses == pytest.approx(float(loss.detach()), abs=1e-6)
    assert correct == pytest.approx(metrics["masked_accuracy"])
    _assert_equal(_gradients(whole), _gradients(parted))


def _assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second) and first
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 7])
def test_gradient_cache_gives_the_plain_loss_and_gradients(inputs: Path, tmp_path: Path, chunk: int) -> None:
    plain = _open(inputs, tmp_path, SupervisedModule, "supervised")
    loss, _ = plain(plain.batch_at(0)[0])
    loss.backward()
    stage = Supervised(lora=LORA, gradient_cache=chunk)
    cached = _open(inputs, tmp_path, SupervisedModule, "supervised", stage=stage)
    again, _ = cached(cached.batch_at(0)[0])
    again.backward()
    assert float(again.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    _assert_equal(_gradients(plain), _gradients(cached))


def test_gradient_cache_repeats_its_dropout(inputs: Path, tmp_path: Path) -> None:
    """The second encoding of a chunk must drop what the first one dropped, or the gradient is of another function."""
    noisy = Simcse(lora=LORA.replace(dropout=0.3), attention_dropout=0.3, gradient_cache=3)
    module = _open(inputs, tmp_path, SimcseModule, "simcse", stage=noisy)
    batch, parameter = module.batch_at(0)[0], next(p for p in module.parameters() if p.requires_grad)
    assert_gradient_is_the_slope(module, batch, parameter)


def test_gradient_cache_keeps_the_random_state_of_its_device(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, dropout repeats only where checkpoint is given a tensor there (tests/gpu runs it on one)."""
    module = _open(inputs, tmp_path, SupervisedModule, "supervised", stage=Supervised(lora=LORA, gradient_cache=5))
    devices: list[set[torch.device]] = []

    def spy(function: Any, *given: Any, **options: Any) -> Any:
        devices.append({one.device for one in given if isinstance(one, torch.Tensor)})
        return checkpoint(function, *given, **options)

    monkeypatch.setattr("rayvec.training.modules.checkpoint", spy)
    module(module.batch_at(0)[0])
    assert devices and all(found == {module.backbone.device} for found in devices)


def test_gradient_cache_lets_go_of_activations(inputs: Path, tmp_path: Path) -> None:
    kept: dict[int | None, int] = {}
    for chunk in (None, 2):
        stage = Supervised(lora=LORA, gradient_cache=chunk)
        module = _open(inputs, tmp_path, SupervisedModule, "supervised", stage=stage)
        kept[chunk] = 0

        def count(tensor: torch.Tensor, chunk: int | None = chunk) -> torch.Tensor:
            kept[chunk] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module(module.batch_at(0)[0])
    assert kept[2] < kept[None] / 5


def test_gradient_cache_and_checkpointing_are_refused_together(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gradient_cache computes the texts twice already"):
        stage = Supervised(lora=LORA, gradient_cache=4)
        config(inputs, tmp_path, "supervised", stage=stage, gradient_checkpointing=True)


def test_matryoshka_is_the_mean_over_the_sizes(inputs: Path, tmp_path: Path) -> None:
    stage = Supervised(lora=LORA, matryoshka=(8, 16))
    module = _open(inputs, tmp_path, SupervisedModule, "supervised", stage=stage)
    batch = module.batch_at(0)[0]
    with torch.no_grad():
        vectors = module.encoder.vectors(module.pack(batch)).double()
    losses = [_plain_loss(vectors[:, :size], batch.keys, 8) for size in (32, 16, 8)]
    assert len({round(loss, 3) for loss in losses}) == 3
    assert float(module(batch)[0].detach()) == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_matryoshka_sizes_must_be_shorter_than_the_vectors(inputs: Path, tmp_path: Path) -> None:
    stage = Supervised(lora=LORA, matryoshka=(32,))
    with pytest.raises(UserError, match=r"stage.matryoshka = 32: the encoder's vectors have 32"):
        _open(inputs, tmp_path, SupervisedModule, "supervised", stage=stage)


def test_only_the_adapter_trains(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, MntpModule, "mntp")
    module(module.batch_at(0)[0])[0].backward()
    assert all("lora_" in name for name in _gradients(module))
    assert len(_gradients(module)) == 2 * 7 * 2  # two layers, seven projections, two factors


def test_masked_texts_come_back_with_the_seed_and_step(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, MntpModule, "mntp")
    first, again, other = module.batch_at(3)[0], module.batch_at(3)[0], module.batch_at(4)[0]
    assert np.array_equal(first.texts.input_ids, again.texts.input_ids)
    assert not np.array_equal(first.texts.input_ids, other.texts.input_ids)
    assert first.document_ids[0].startswith("doc-")


def test_the_two_views_of_simcse_differ(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SimcseModule, "simcse")
    loss, metrics = module(module.batch_at(0)[0])
    assert metrics["alignment"] > 1e-3
    assert float(loss.detach()) > 1e-3


def test_dropout_repeats_with_the_seed(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SimcseModule, "simcse")
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(float(module(module.batch_at(0)[0])[0].detach()))
    assert losses[0] == losses[1]


def test_equal_views_are_refused(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SimcseModule, "simcse")
    module.backbone.eval()
    with pytest.raises(UserError, match="both views of each text are the same"):
        module(module.batch_at(0)[0])


def test_simcse_without_dropout_is_refused_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="both views are the same"):
        Simcse(attention_dropout=0.0, lora=LoraSettings(dropout=0.0))


def test_supervised_equals_a_plain_computation(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SupervisedModule, "supervised")
    batch = module.batch_at(0)[0]
    loss, _ = module(batch)
    with torch.no_grad():
        vectors = module.encoder.vectors(module.pack(batch)).double()
    assert float(loss.detach()) == pytest.approx(_plain_loss(vectors, batch.keys, 8), rel=1e-4)


def _plain_loss(vectors: torch.Tensor, keys: np.ndarray, size: int) -> float:
    """InfoNCE in float64, one query after another: positives, then hard negatives; equal texts are no negatives."""
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    queries, documents = vectors[:size], vectors[size:]
    total = 0.0
    for i, query in enumerate(queries):
        positive = keys[size + i]
        counted = [j for j in range(len(documents)) if j == i or keys[size + j] != positive]
        scores = torch.tensor([50 * float(query @ documents[j]) for j in counted], dtype=torch.float64)
        total += float(torch.logsumexp(scores, 0) - scores[counted.index(i)])
    return total / size


def test_instructions_are_read_but_not_pooled(inputs: Path, tmp_path: Path) -> None:
    module = _open(inputs, tmp_path, SupervisedModule, "supervised")
    texts = module.batch_at(0)[0].texts
    queries, documents = texts.pool_start[:8], texts.pool_start[8:16]
    assert (queries > documents.max()).all()


def test_a_mask_token_that_is_none_is_named(inputs: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(inputs / "base")
    model = AutoConfig.from_pretrained(inputs / "base")
    assert mask_policy(tokenizer, Mntp(lora=LORA), model).mask_id == tokenizer.mask_token_id
    assert mask_policy(tokenizer, Mntp(mask_token="_"), model).mask_id == tokenizer.convert_tokens_to_ids("_")
    assert mask_policy(tokenizer, Mntp(mask_token="<unk>"), model).mask_id == tokenizer.unk_token_id
    with pytest.raises(UserError, match="mask token 'no such token' is not in the vocabulary"):
        mask_policy(tokenizer, Mntp(mask_token="no such token"), model)
