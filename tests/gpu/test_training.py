"""Training on a GPU: what GradCache computes twice is the same both times. Needs a CUDA device; runs without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_gradient_cache_repeats_its_dropout(tmp_path: Path) -> None:
    """The second encoding of a chunk must drop what the first one dropped, or the gradient is of another function."""
    from pipelines.train import prepare
    from rayvec.training.modules import SimcseModule
    from rayvec.training.stages import Simcse
    from tests.runs import LORA, assert_gradient_is_the_slope, config, write_inputs

    stage = Simcse(lora=LORA.replace(dropout=0.3), attention_dropout=0.3, gradient_cache=3)
    run = config(write_inputs(tmp_path), tmp_path / "run", "simcse", stage=stage, dtype="float32")
    prepare(run, tmp_path / "run")
    module = SimcseModule(run, tmp_path / "run" / "data", "cuda").train()
    generator = torch.Generator().manual_seed(1)
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:  # a fresh LoRA's second factor is zero, and then so is the first one's gradient
        p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    batch, parameter = module.batch_at(0)[0], trained[0]
    assert_gradient_is_the_slope(module, batch, parameter)
