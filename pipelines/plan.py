"""What a training run would need, for --dry-run: parameters, and memory on each GPU under each ZeRO stage.

Needs no network, no Ray and no GPU: the model is built on torch's meta device from its configuration alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.train import TrainConfig, zero_settings
from rayvec.errors import UserError
from rayvec.training.stages import Pretrain

STAGES = ("zero0", "zero1", "zero2", "zero3")
OFFLOADED = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}


def plan(config: TrainConfig) -> Sequence[str]:
    """Lines that tell what the run would need; one line that says why, where that cannot be told.

    Raises UserError for DeepSpeed settings that are not there.
    """
    from rayvec.training.plan import make_plan
    from rayvec.training.shapes import Shape, find_shape

    schemes, chosen = ways(config)
    reference = config.start or config.base
    shape = find_shape(reference)
    if shape is None and config.base:
        shape = find_shape(config.base)
    if shape is None and isinstance(config.stage, Pretrain) and not config.start:
        shape = Shape("a new decoder", None, "stage.decoder")
    if shape is None:
        return [f"plan     the shape of {reference or 'start'} is not known here; memory is not estimated"]
    width = 4 if config.dtype == "float32" or (config.dtype == "auto" and config.device == "cpu") else 2
    try:
        made = make_plan(config, shape, width=width, deepspeed=chosen != "plain")
    except UserError as error:
        return [f"plan     {error}; memory is not estimated"]
    return made.lines(schemes, workers=max(1, config.workers), chosen=chosen)


def ways(config: TrainConfig) -> tuple[Mapping[str, Mapping[str, Any] | None], str]:
    """Ways of sharing memory out by name, None being none, and the name of the configuration's own."""
    zero3 = zero_settings("zero3")
    offloaded = {**zero3, "zero_optimization": {**zero3["zero_optimization"], **OFFLOADED}}
    schemes: dict[str, Mapping[str, Any] | None] = {name: zero_settings(name) for name in STAGES}
    schemes["zero3, CPU offload"] = offloaded
    if config.workers == 0 or config.engine == "plain":
        return {"plain": None, **schemes}, "plain"
    return {**schemes, config.zero: zero_settings(config.zero)}, config.zero
