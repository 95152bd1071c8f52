"""DeepSpeed behind the loop's Engine: ZeRO 0 to 3 around a stage's module, torch's AdamW inside.

The whole stage (model and loss) is the module that DeepSpeed wraps, so no gradient can miss its averaging (the
reference's defect D4). Knows DeepSpeed. Knows no stage, no data, no Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayvec.errors import MismatchError
from rayvec.losses.gather import rank
from rayvec.training.loop import Summed
from rayvec.training.optimizers import OptimizerConfig, build_adamw

if TYPE_CHECKING:
    import torch

    from rayvec.training.loop import Batch, Metrics


class DeepSpeedEngine:
    """One rank's share of a module that all ranks train together.

    settings: a DeepSpeed configuration, such as infra/deepspeed/zero1.json; batch sizes, clipping and precision are
    filled in here. A process group must exist.
    """

    def __init__(
        self, module: torch.nn.Module, config: OptimizerConfig, settings: Mapping[str, Any], *, bf16: bool = False
    ) -> None:
        deepspeed = _import_deepspeed()
        self.module = module
        self.clip_norm = config.clip_norm
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.stage = int(settings.get("zero_optimization", {}).get("stage", 0))
        self.engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=self.parameters,
            optimizer=build_adamw(self.parameters, config),
            config=_complete(settings, config, bf16=bf16, clips=self.stage > 0 or bf16),
            dist_init_required=False,
        )

    def backward(self, parts: Sequence[Batch]) -> tuple[float, Metrics]:
        """Forward and backward of each part in turn; the losses and metrics of this rank, summed over its parts."""
        total = Summed()
        for number, part in enumerate(parts, 1):
            self.engine.set_gradient_accumulation_boundary(number == len(parts))
            loss, metrics = self.engine(part)
            self.engine.backward(loss)
            total.add(loss, metrics)
        return total.loss, total.metrics

    def step(self, rate: float) -> float:
        """Average the gradients over ranks, clip, step; returns their norm before clipping."""
        import torch

        norm: Any = None
        if self.engine.gradient_clipping() == 0.0:  # ZeRO 0 in fp32: the gradients are whole and averaged here
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable weights by name, whole; every rank must call it."""
        named = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        with self.whole():
            return {name: parameter.detach().cpu().clone() for name, parameter in named.items()}

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """This rank's share: master weights and AdamW's moments, by place."""
        state: dict[str, torch.Tensor] = {}
        for place, master in enumerate(self._masters()[0]):
            state[f"{place}.master"] = master.detach().cpu().clone()
            for name, value in self._base().state.get(master, {}).items():
                state[f"{place}.{name}"] = value.detach().cpu().clone()
        return state

    def restore(self, weights: Mapping[str, torch.Tensor], optimizers: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Go on from what `weights` and `optimizer_state` gave, to the bit.

        optimizers: this rank's own state, or that of all ranks in order, where another number of ranks wrote it: flat
        partitions are then joined and cut anew. Raises MismatchError under ZeRO 3, which cuts each weight by itself.
        """
        import torch

        if len(optimizers) > 1 and self.stage == 3:
            raise MismatchError(
                f"the checkpoint is of {len(optimizers)} workers, and under ZeRO 3 as many must go on from it; set "
                f"workers={len(optimizers)}"
            )
        named = dict(self.module.named_parameters())
        with torch.no_grad(), self.whole(write=True):
            for name, value in weights.items():
                named[name].data.copy_(value)
        masters, partitioned = self._masters()
        for place, master in enumerate(masters):
            prefix = f"{place}."
            state = {
                key.removeprefix(prefix): _own_part([rank_[key] for rank_ in optimizers], master, cut=partitioned)
                for key in optimizers[0]
                if key.startswith(prefix)
            }
            master.data.copy_(state.pop("master"))
            self._base().state[master] = {
                name: value.clone().to("cpu" if name == "step" else master.device) for name, value in state.items()
            }

    def _base(self) -> torch.optim.Optimizer:
        """torch's AdamW, wherever DeepSpeed put it."""
        optimizer: Any = self.engine.optimizer
        base: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return base

    def _masters(self) -> tuple[list[torch.Tensor], bool]:
        """The tensors that AdamW moves, and whether they are this rank's flat partitions of the parameters (ZeRO)."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self.engine.optimizer, name):
                return list(getattr(self.engine.optimizer, name)), True
        return [parameter for group in self._base().param_groups for parameter in group["params"]], False

    @contextlib.contextmanager
    def whole(self, *, write: bool = False, frozen: bool = False) -> Iterator[None]:
        """Under ZeRO 3, bring the partitioned parameters together (and distribute what was written).

        frozen: those that do not train too.
        """
        if self.stage < 3:
            yield
            return
        deepspeed = _import_deepspeed()
        parameters = list(self.module.parameters()) if frozen else self.parameters
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
            yield


def _own_part(parts: Sequence[torch.Tensor], master: torch.Tensor, *, cut: bool) -> torch.Tensor:
    """This rank's part of a checkpoint's tensor. cut: the ranks hold flat partitions of it, else each has it whole."""
    import torch

    if len(parts) == 1 or not cut or parts[0].ndim == 0:
        return parts[0]
    size = master.numel()
    mine = torch.cat(list(parts))[rank() * size : (rank() + 1) * size]
    # Partitions are filled up to equal sizes: the end of the last one holds no weight.
    return torch.cat([mine, mine.new_zeros(size - mine.numel())])


def _complete(settings: Mapping[str, Any], config: OptimizerConfig, *, bf16: bool, clips: bool) -> dict[str, Any]:
    """The settings with what the loop decides. One backward is one step: accumulation is the batch's own affair."""
    return {
        **settings,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm if clips else 0.0,
        "steps_per_print": 1 << 40,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
    }


def _import_deepspeed() -> Any:
    """deepspeed, quiet, and without compiling its shared-memory extension (inference only, and it asks for ninja)."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
