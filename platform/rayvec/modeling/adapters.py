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
from rayvec.errors import UserError, VerificationError
from rayvec.modeling.manifest import AdapterRecord, extend, require_base

if TYPE_CHECKING:
    from rayvec.modeling.backbone import Backbone

FILE = "rayvec_adapter.json"
WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
#: The projections that LLM2Vec adapts, by their usual names.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraSettings(Config):
    """A new adapter's size. Defaults are LLM2Vec's."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    #: Names of the layers to adapt; empty: LLM2Vec's seven projections, or every linear layer where none is named so.
    targets: tuple[str, ...] = ()


def attach(backbone: Backbone, settings: LoraSettings) -> None:
    """Put a fresh LoRA on the backbone's decoder; only its weights train from here on."""
    peft = _peft()

    names = {name.rpartition(".")[2] for name, _ in backbone.decoder.named_modules()}
    targets = settings.targets or tuple(name for name in PROJECTIONS if name in names)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets) if targets else "all-linear",
        bias="none",
    )
    try:
        with _known_warnings():
            decoder = peft.get_peft_model(backbone.decoder, config)
    except ValueError as error:
        raise UserError(f"LoRA finds no layer to adapt ({' '.join(str(error).split())[:160]}); set targets") from None
    _freeze_head(backbone)
    backbone.decoder = decoder


def attach_trained(backbone: Backbone, folder: Path) -> None:
    """Put a saved LoRA on the backbone, unmerged, to train it further."""
    peft = _peft()

    with _known_warnings():
        decoder = peft.PeftModel.from_pretrained(backbone.decoder, str(folder), is_trainable=True)
    _freeze_head(backbone)
    backbone.decoder = decoder


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
    """Load adapters in order, merging each before the next."""
    peft = _peft()

    for folder in folders:
        with _known_warnings():
            backbone.decoder = peft.PeftModel.from_pretrained(backbone.decoder, str(folder))
        merge(backbone)
    backbone.decoder.eval()


def save(backbone: Backbone, folder: Path, *, stage: str, base_lineage: str) -> AdapterRecord:
    """Write the attached LoRA as a finished folder, with what it was trained on. Returns its record."""
    with storage.committed_folder(folder) as temporary:
        backbone.decoder.save_pretrained(str(temporary))
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


def read_records(folders: Sequence[Path], base_sha256: str, *, where: str) -> tuple[AdapterRecord, ...]:
    """The records of adapters in merge order, each checked against what it is put on.

    An adapter of another tool carries no record; it is taken as trained on what it is put on. Raises MismatchError
    when a record names another base, VerificationError when the files are not those that were saved.
    """
    lineage, records = base_sha256, []
    for folder in folders:
        sha256 = digest(folder)
        if (folder / FILE).exists():
            record = AdapterRecord.parse(storage.read_json(folder / FILE))
            if record.sha256 != sha256:
                raise VerificationError(f"{folder} does not match its checksum; it was damaged: restore it")
        else:
            record = AdapterRecord(stage=folder.name, sha256=sha256, base_lineage=lineage)
        require_base(record, lineage, where=where)
        lineage = extend(lineage, sha256)
        records.append(record)
    return tuple(records)
