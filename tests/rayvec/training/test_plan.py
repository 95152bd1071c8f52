"""Plan: ZeRO's shares by hand and as DeepSpeed really holds them, tokens of each stage, the printed table.

Run as a program (rank, rendezvous file) this file is one of two workers that take a step under each ZeRO stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train import zero_settings
from rayvec.training.footprint import Activations, Footprint
from rayvec.training.optimizers import OptimizerConfig
from rayvec.training.plan import COLUMNS, GIB, Memory, Plan, make_plan
from rayvec.training.shapes import Shape, find_shape
from rayvec.training.stages import Mntp, Pairs, PairSet, Pretrain, Simcse, Supervised, TrainingConfig

ROOT = Path(__file__).resolve().parents[3]
#: 8192 frozen and 6144 trained weights: both halve evenly.
FROZEN, TRAINED = 64 * 128, 128 * 48
STAGES = ("zero0", "zero1", "zero2", "zero3")
PAIRS = Pairs(sets=(PairSet(name="pairs", path="pairs.jsonl"),))


class Toy(torch.nn.Module):
    """A frozen and a trained matrix, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(64, 128, bias=False).requires_grad_(False)
        self.trained = torch.nn.Linear(128, 48, bias=False)

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        return self.trained(self.frozen(batch)).float().square().mean(), {}


def toy_plan(width: int, **changes: Any) -> Plan:
    counts = Footprint(
        family="toy",
        layers=2,
        hidden=8,
        vocabulary=100,
        published=FROZEN + TRAINED,
        loaded=FROZEN + TRAINED,
        trained=TRAINED,
        loaded_bytes=width * (FROZEN + TRAINED),
        trained_bytes=width * TRAINED,
        activations=Activations(kept=100.0, kept_checkpointed=20.0, layer=40.0, widest=8.0),
    )
    config = TrainingConfig(**{"stage": Simcse(), "batch_size": 6, "max_length": 10, **changes})
    return Plan(config, Shape("toy", None, "a test"), counts, width)


def held(memory: Memory) -> tuple[float, float, float]:
    return memory.weights, memory.gradients, memory.optimizer


def test_each_zero_stage_shares_out_one_thing_more() -> None:
    plan = toy_plan(2)
    every, each = 2 * (FROZEN + TRAINED), 2 * TRAINED
    memory = {name: held(plan.memory(4, zero_settings(name))) for name in STAGES}
    assert memory == {
        "zero0": (every, each, 12 * TRAINED),
        "zero1": (every, each, 3 * TRAINED),
        "zero2": (every, each / 4, 3 * TRAINED),
        "zero3": (every / 4, each / 4, 3 * TRAINED),
    }


def test_buckets_are_whole_and_zero_3_gathers_what_it_computes_with() -> None:
    plan = toy_plan(2)
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 700}}
    assert plan.memory(4, settings).buffers == 1400
    assert plan.memory(4, {"zero_optimization": {"stage": 1}}).buffers == 2 * 500_000_000
    settings = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 700, "stage3_max_live_parameters": 5000}}
    assert plan.memory(4, settings).buffers == 1400 + 2 * 5000
    assert plan.memory(4, {}).buffers == 0


def test_offloaded_parts_are_in_the_machines_memory() -> None:
    device = {"device": "cpu"}
    settings = {"zero_optimization": {"stage": 3, "offload_param": device, "offload_optimizer": device}}
    memory = toy_plan(2).memory(2, settings)
    assert held(memory) == (0, 0, 0)
    assert memory.host == (2 * (FROZEN + TRAINED) + 14 * TRAINED) / 2


def test_without_deepspeed_there_is_no_master_copy() -> None:
    assert held(toy_plan(4).memory(1, None)) == (4 * (FROZEN + TRAINED), 4 * TRAINED, 8 * TRAINED)


def test_activations_with_and_without_checkpointing() -> None:
    tokens = 6 * 2 * 10
    assert toy_plan(2).memory(1, None).activations == tokens * (100 + 2 * 8)
    assert toy_plan(2, gradient_checkpointing=True).memory(1, None).activations == tokens * (20 + 40 + 2 * 8)


@pytest.mark.parametrize(
    ("stage", "workers", "texts", "tokens"),
    [
        (Mntp(), 1, 6, 60),
        (Mntp(accumulate=3), 2, 3, 10),
        (Simcse(), 4, 4, 40),  # the ranks with the most texts have 2, each twice
        (Simcse(gradient_cache=5), 1, 12, 50),
        (Supervised(hard_negatives=2), 3, 8, 80),
        (Pretrain(), 2, 3, 30),
    ],
)
def test_texts_and_tokens_at_a_time(stage: Any, workers: int, texts: int, tokens: int) -> None:
    plan = toy_plan(2, stage=stage, **({"data": PAIRS} if isinstance(stage, Supervised) else {}))
    assert (plan.texts(workers), plan.tokens(workers)) == (texts, tokens)


@pytest.mark.parametrize(
    ("stage", "width", "logits"),
    [
        (Mntp(probability=0.5), 2, 30 * 100 * (2 + 4 + 4)),
        (Mntp(probability=0.5, loss_chunk=8), 2, 8 * 100 * 10),
        (Mntp(probability=0.5, loss_chunk=8), 4, 8 * 100 * (4 + 4)),
        (Pretrain(), 2, 60 * 100 * 10),
        (Simcse(), 2, 0),
    ],
)
def test_logits_exist_for_a_chunk_of_the_masked_positions(stage: Any, width: int, logits: float) -> None:
    assert toy_plan(width, stage=stage).memory(1, None).logits == logits


def test_memory_falls_with_the_zero_stage_when_all_weights_train() -> None:
    shape = find_shape("Qwen/Qwen3-4B")
    assert shape is not None
    config = TrainingConfig(stage=Mntp(lora=None), gradient_checkpointing=True)
    plan = make_plan(config, shape, width=2, deepspeed=True)
    totals = [plan.memory(8, zero_settings(name)).total for name in STAGES]
    assert totals == sorted(totals, reverse=True)
    assert plan.memory(1, zero_settings("zero0")).total > plan.memory(1, None).total
    # 2 + 2 + 12 bytes of each of 4.02 billion parameters, and what the batch takes.
    memory = plan.memory(8, zero_settings("zero0"))
    assert sum(held(memory)) == 16 * 4_022_468_096
    assert memory.total / GIB == pytest.approx(59.9 + (memory.activations + memory.logits) / GIB, abs=0.1)


def test_the_table_has_a_row_for_each_way_and_marks_the_runs_own() -> None:
    schemes = {"plain": None, "zero2": zero_settings("zero2")}
    *told, head, plain, zero2 = toy_plan(2).lines(schemes, workers=2, chosen="zero2")
    assert [line.split()[0] for line in told] == ["model", "trained", "batch", "memory"]
    assert "6,144 of 14,336 parameters" in told[1]
    assert "6 texts a worker and step, up to 60 tokens at a time; workers: 2" in told[2]
    assert head.split() == ["GiB", "a", "GPU", *COLUMNS, "with", "8", "workers"]
    assert plain.split() == ["plain", *["0.00"] * 7, "–"]
    assert zero2.split() == ["zero2", "(chosen)", *["0.00"] * 3, "0.09", "0.00", "0.00", "0.09", "0.09"]


def test_deepspeed_holds_what_is_planned(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "rendezvous")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), *arguments],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for (output, errors), worker in [(worker.communicate(timeout=250), worker) for worker in workers]:
        assert worker.returncode == 0, errors
        for name, found in json.loads(output.splitlines()[-1]).items():
            zero, width = name.split()
            planned = toy_plan(int(width)).memory(2, zero_settings(zero))
            assert found == [planned.weights, planned.optimizer], name


def _measure(rank: int, rendezvous: str) -> dict[str, list[int]]:
    """Bytes of weights and of optimizer state after a real step under each stage, in bf16 and in fp32."""
    from rayvec.training.deepspeed import DeepSpeedEngine

    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for width, dtype in ((2, torch.bfloat16), (4, torch.float32)):
        for name in STAGES:
            settings = zero_settings(name)
            settings["zero_optimization"]["reduce_bucket_size"] = 100_000
            module = Toy()
            engine = DeepSpeedEngine(module, OptimizerConfig(), settings, bf16=width == 2)
            engine.backward([torch.ones(3, 64, dtype=dtype)])
            engine.step(1e-3)
            weights = [getattr(parameter, "ds_tensor", parameter) for parameter in module.parameters()]
            states = [value for state in engine._base().state.values() for value in state.values() if value.ndim]
            held_weights = sum(weight.nbytes for weight in weights)
            # ZeRO 0 under fp32 moves the weights themselves: memory that is there once counts once.
            own = {weight.untyped_storage().data_ptr() for weight in weights}
            masters = [m for m in engine._masters()[0] if m.untyped_storage().data_ptr() not in own]
            found[f"{name} {width}"] = [held_weights, sum(tensor.nbytes for tensor in [*masters, *states])]
    torch.distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), sys.argv[2])))
