"""Checkpoints: a folder of safetensors and one JSON record a rank, with checksums; nothing in it is code.

    weights.safetensors           the trainable weights, whole           (rank 0)
    metrics.jsonl                 what was logged so far                 (rank 0)
    optimizer-<rank>.safetensors  this rank's master weights and moments
    rank-<rank>.json              step, ranks, configuration, checksums of this rank's files

Knows tensors and files. Knows no model, no DeepSpeed, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rayvec import storage
from rayvec.config import Config
from rayvec.errors import MismatchError, VerificationError
from rayvec.modeling.manifest import FileRecord, record_files

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, METRICS = "weights.safetensors", "metrics.jsonl"
FORMAT = "rayvec.checkpoint/1"


class CheckpointRecord(Config):
    """What one rank wrote."""

    format: str = FORMAT
    step: int
    rank: int
    world_size: int
    #: Digest of the configuration; another one is another run.
    config: str
    files: Mapping[str, FileRecord]


def write(
    folder: Path,
    record: CheckpointRecord,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    metrics: str,
) -> None:
    """Write this rank's part; the record comes last."""
    from safetensors.torch import save_file

    names = [f"optimizer-{record.rank}.safetensors"]
    save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, folder / names[0])
    if record.rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
        (folder / METRICS).write_text(metrics, encoding="utf-8")
        names += [WEIGHTS, METRICS]
    record = record.replace(files=record_files(folder, names))
    storage.write_json(folder / record_name(record.rank), record.model_dump(mode="json"))


def record_name(rank: int) -> str:
    """The file that says what a rank wrote."""
    return f"rank-{rank}.json"


def verify(folder: Path) -> CheckpointRecord:
    """The record of rank 0, after every rank's files matched theirs. Raises VerificationError."""
    first = _record(folder, 0)
    for rank in range(first.world_size):
        record = _record(folder, rank)
        if (record.step, record.world_size, record.config) != (first.step, first.world_size, first.config):
            raise VerificationError(f"{folder} mixes two checkpoints; remove it")
        for name, file in record.files.items():
            storage.check_file(folder / name, bytes_=file.bytes, sha256=file.sha256)
    return first


def _record(folder: Path, rank: int) -> CheckpointRecord:
    try:
        return CheckpointRecord.parse(storage.read_json(folder / record_name(rank)))
    except (FileNotFoundError, ValueError) as error:
        raise VerificationError(f"{folder} is no whole checkpoint: {error}") from None


def newest(root: Path) -> Path | None:
    """The whole checkpoint with the highest step below a folder; torn ones are passed over."""
    found = []
    for path in root.rglob(record_name(0)):
        try:
            found.append((verify(path.parent).step, path.parent))
        except VerificationError:
            continue
    return max(found)[1] if found else None


class Restored(NamedTuple):
    """What a run goes on from."""

    step: int
    #: The trainable weights by name.
    weights: dict[str, Tensor]
    #: This rank's optimizer state; or that of all ranks in order, where another number of ranks wrote it.
    optimizers: list[dict[str, Tensor]]
    #: The lines of metrics.jsonl so far.
    metrics: str


def load(folder: Path, *, rank: int, world_size: int, config: str) -> Restored:
    """A checkpoint's content; checked first.

    Raises VerificationError when a file is damaged, MismatchError when the checkpoint is of another run.
    """
    from safetensors.torch import load_file

    record = verify(folder)
    if record.config != config:
        raise MismatchError(f"{folder} is of a run with another configuration; choose another output")
    ranks = [rank] if record.world_size == world_size else range(record.world_size)
    optimizers = [load_file(folder / f"optimizer-{rank}.safetensors") for rank in ranks]
    metrics = (folder / METRICS).read_text(encoding="utf-8")
    return Restored(record.step, load_file(folder / WEIGHTS), optimizers, metrics)
