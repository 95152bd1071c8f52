"""The GPU path of packed attention against the CPU's, in the same model. Needs a CUDA device; runs without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def batch(lengths: list[int]):  # type: ignore[no-untyped-def]
    from rayvec.modeling.tokens import TokenBatch

    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenBatch(
        input_ids=generator.integers(5, 500, size=offsets[-1]).astype(np.int32),
        offsets=offsets,
        pool_start=np.zeros(len(lengths), dtype=np.int32),
        pool_end=np.array(lengths, dtype=np.int32),
        truncated=np.zeros(len(lengths), dtype=bool),
    )


def states(path: Path, device: str, dtype: str, attention: str) -> np.ndarray:
    from rayvec.modeling.backbone import Backbone
    from rayvec.modeling.batching import PackedBatch

    backbone = Backbone.load(path, attention=attention, device=device, dtype=getattr(torch, dtype))  # type: ignore[arg-type]
    with torch.inference_mode():
        result = backbone.hidden_states(PackedBatch.from_tokens(batch([3, 40, 1, 17, 40]), device))
    return result.float().cpu().numpy()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head dimension of 64: the kernel's own ground."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=512,
        )
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_varlen_kernel_agrees_with_the_cpu(llama: Path, attention: str) -> None:
    here = states(llama, "cpu", "float32", attention)
    there = states(llama, "cuda", "bfloat16", attention)
    cosine = (here * there).sum(1) / (np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1))
    assert cosine.min() > 0.999


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_padded_path_agrees_with_the_cpu(llama: Path, attention: str) -> None:
    # float32 is not the varlen kernel's: this takes the padded path on the GPU.
    here = states(llama, "cpu", "float32", attention)
    there = states(llama, "cuda", "float32", attention)
    assert np.abs(here - there).max() < 2e-3
