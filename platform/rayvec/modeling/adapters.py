"""LoRA adapters: attach one for training, save it with the lineage of its base, load and merge a chain in order.

Order: base → MNTP → SimCSE or supervised; each is merged before the next is put on. Knows peft and backbones. Knows no
tokenizer, no pooling. peft and torch load when a function is called.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from rayvec import storage
from rayvec.config import Config
from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.modeling import references
from rayvec.modeling.manifest import AdapterRecord, extend, require_base

if TYPE_CHECKING:
    from rayvec.modeling.backbone import Backbone

FILE = "rayvec_adapter.json"
WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
#: What peft puts before the name of each weight.
PREFIX = "base_model.model."
#: The projections that LLM2Vec adapts, by their usual names.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSettings(Config):
    """A new adapter's size. Defaults are LLM2Vec's."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    #: Names of the layers to adapt; empty: LLM2Vec's seven projections, or every linear layer where those are not all.
    targets: tuple[str, ...] = ()


def attach(backbone: Backbone, settings: LoraSettings) -> None:
    """Put a fresh LoRA on the backbone's decoder; only its weights train from here on."""
    peft = _peft()

    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or _targets(backbone.decoder),
        bias="none",
    )
    try:
        with _known_warnings():
            decoder = peft.get_peft_model(backbone.decoder, config)
    except ValueError as error:
        raise UserError(f"LoRA finds no layer to adapt ({' '.join(str(error).split())[:160]}); set targets") from None
    _freeze_head(backbone)
    backbone.decoder = decoder


def _targets(decoder: Any) -> list[str] | str:
    """LLM2Vec's projections where a layer has no other linear ones, else all: families call some otherwise, or fuse
    them (Phi-3's qkv_proj), and an adapter without those would silently be of half a layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = {
        name.rpartition(".")[2]
        for name, module in decoder.named_modules()
        # Of the layers, which have numbers in their names: others stand before or after them.
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    }
    return sorted(linear) if linear and linear <= {*PROJECTIONS} else "all-linear"


def adapted(backbone: Backbone) -> list[str]:
    """The names of the layers that the attached LoRA adapts, each once."""
    (config,) = backbone.decoder.peft_config.values()
    targets = config.target_modules
    return sorted({name.rpartition(".")[2] for name in ([targets] if isinstance(targets, str) else targets)})


def attach_trained(backbone: Backbone, folder: Path) -> None:
    """Put a saved LoRA on the backbone, unmerged, to train it further."""
    decoder = _on(backbone.decoder, folder, trainable=True)
    _freeze_head(backbone)
    backbone.decoder = decoder


def _on(decoder: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The decoder with a saved adapter on it, unmerged.

    Raises MismatchError when a weight of the adapter has no place on the decoder, or a place has no weight: peft warns
    of the latter, says nothing of the former, and goes on with an adapter that does nothing there.
    """
    peft = _peft()
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    names = _renaming(folder, {name for name, _ in decoder.named_modules()})
    try:
        with _known_warnings():
            adapted = peft.PeftModel(decoder, config)
            result = adapted.load_adapter(str(folder), "default", is_trainable=trainable, key_mapping=names)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        raise _misfit(folder, " ".join(str(error).split())[:200]) from None
    if result.unexpected_keys:
        raise _misfit(folder, f"no place for {_some(result.unexpected_keys)}")
    if result.missing_keys:
        raise _misfit(folder, f"no weights for {_some(result.missing_keys)}")
    return adapted


def _renaming(folder: Path, modules: set[str]) -> dict[str, str]:
    """How the adapter's names become the decoder's: it may have been saved from the model with its vocabulary head."""
    from safetensors import SafetensorError, safe_open

    digest(folder)
    try:
        with safe_open(folder / WEIGHTS, "np") as file:
            names = [key.removeprefix(PREFIX).partition(".lora_")[0] for key in file.keys()]  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({' '.join(str(error).split())}); fetch it again") from None
    outer = all(name.startswith("model.") and name.removeprefix("model.") in modules for name in names)
    return {r"^model\.": ""} if outer else {}


def _misfit(folder: Path, detail: str) -> MismatchError:
    return MismatchError(
        f"the adapter in {folder} does not fit the model that it is put on ({detail}); load it on the base and the "
        "adapters it was trained on, in order"
    )


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(sorted(keys)[:2])
    return shown if len(keys) <= 2 else f"{shown} and {len(keys) - 2} more"


def _peft() -> Any:
    """peft. It loads DeepSpeed where that is installed, which warns of a machine without a GPU unless it is told."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import peft

    return peft


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """peft 0.21 asks transformers 5.23 for a property by its former name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _freeze_head(backbone: Backbone) -> None:
    if backbone.head is not None:
        backbone.head.requires_grad_(False)


def merge(backbone: Backbone) -> None:
    """Add the attached LoRA into the weights: nothing of peft is left, and inference pays nothing for it."""
    backbone.decoder = backbone.decoder.merge_and_unload(safe_merge=True)
    # peft leaves the frozen weights frozen; a plain model's are not.
    backbone.decoder.requires_grad_(True)


def load_merged(backbone: Backbone, folders: Sequence[Path]) -> None:
    """Load adapters in order, merging each before the next. Raises MismatchError when one does not fit."""
    for folder in folders:
        backbone.decoder = _on(backbone.decoder, folder)
        merge(backbone)
    backbone.decoder.eval()


def save(backbone: Backbone, folder: Path, *, stage: str, base_lineage: str, base: str | None = None) -> AdapterRecord:
    """Write the attached LoRA as a finished folder, with what it was trained on. Returns its record.

    `base` is the manifest's name of the base, for other tools; a folder of this machine is left out.
    """
    with storage.committed_folder(folder) as temporary:
        backbone.decoder.save_pretrained(str(temporary))
        # peft writes the base's path, and its targets in the order of a set, which changes from run to run.
        settings = storage.read_json(temporary / SETTINGS)
        targets = settings["target_modules"]
        settings["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
        name, revision = references.hub_parts((base and references.portable(base)) or "")
        settings |= {"base_model_name_or_path": name or None, "revision": revision}
        storage.write_json(temporary / SETTINGS, settings)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's empty model card
        record = AdapterRecord(stage=stage, sha256=digest(temporary), base_lineage=base_lineage)
        storage.write_json(temporary / FILE, record.model_dump())
    return record


def copy(folder: Path, target: Path) -> None:
    """Copy a saved adapter, byte for byte."""
    if folder.resolve() != target.resolve():
        with storage.committed_folder(target) as temporary:
            for name in (WEIGHTS, SETTINGS, FILE):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, temporary / name)


def digest(folder: Path) -> str:
    """What an adapter is: its weights and its settings (rank, alpha, targets)."""
    for name in (WEIGHTS, SETTINGS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no adapter: it has no {name}; give the folder that training saved")
    return storage.sha256_bytes("+".join(storage.sha256_file(folder / n) for n in (WEIGHTS, SETTINGS)).encode())


def read_records(
    folders: Sequence[Path], base_sha256: str, *, where: str, stages: Sequence[str] = ()
) -> tuple[AdapterRecord, ...]:
    """The records of adapters in merge order, each checked against what it is put on.

    An adapter of another tool carries no record; it is taken as trained on what it is put on, at the stage that
    `stages` says (by default its folder's name). Raises MismatchError
    when a record names another base, VerificationError when the files are not those that were saved.
    """
    lineage, records = base_sha256, []
    for folder, stage in zip(folders, stages or [folder.name for folder in folders], strict=True):
        sha256 = digest(folder)
        if (folder / FILE).exists():
            record = AdapterRecord.parse(storage.read_json(folder / FILE))
            if record.sha256 != sha256:
                raise VerificationError(f"{folder} does not match its checksum; it was damaged: restore it")
        else:
            record = AdapterRecord(stage=stage, sha256=sha256, base_lineage=lineage)
        require_base(record, lineage, where=where)
        lineage = extend(lineage, sha256)
        records.append(record)
    return tuple(records)
