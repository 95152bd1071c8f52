"""rayvec.json: what an encoder folder holds. Base, adapters in merge order, how texts are read, and the fingerprint.

Knows names, hashes and JSON. Knows no torch, no transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from rayvec import storage
from rayvec.config import Config
from rayvec.errors import MismatchError, VerificationError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.prompts import Prompts
from rayvec.modeling.references import WEIGHTS

FILE = "rayvec.json"
PoolingName = Literal["mean", "weighted_mean", "last_token", "bos"]


class FileRecord(Config):
    """Size and checksum of one file of the folder."""

    bytes: int
    sha256: str


class AdapterRecord(Config):
    """One adapter: its stage, what it is (hash of weights and settings), and the lineage that it was trained on."""

    stage: str
    sha256: str
    base_lineage: str


class EncoderManifest(Config):
    """Everything that makes the encoder's vectors, and the checksums of the files beside it."""

    format: Literal["rayvec.encoder/1"] = "rayvec.encoder/1"
    base: str
    base_sha256: str
    adapters: tuple[AdapterRecord, ...] = ()
    #: Whether model.safetensors beside this file holds base and adapters merged.
    merged: bool = False
    attention: Literal["bidirectional", "causal", "native"] = "bidirectional"
    attention_window: Literal["keep", "full"] = "keep"
    pooling: PoolingName = "mean"
    prompts: Prompts = Prompts()
    max_length: PositiveInt = 512
    normalize: bool = True
    dim: PositiveInt
    tokenizer: str
    files: Mapping[str, FileRecord] = {}
    #: One entry a stage: its configuration and what it reached. Not part of the fingerprint.
    training: tuple[Mapping[str, Any], ...] = ()

    @property
    def lineage(self) -> str:
        """The hash of base and adapters in merge order: the same for an adapter folder and its merged export."""
        value = self.base_sha256
        for adapter in self.adapters:
            value = extend(value, adapter.sha256)
        return value

    @property
    def fingerprint(self) -> Fingerprint:
        """See Fingerprint; every field that moves a vector is in it."""
        return Fingerprint(
            weights=self.lineage,
            tokenizer=self.tokenizer,
            attention=f"{self.attention}/{self.attention_window}",
            pooling=self.pooling,
            prompts=self.prompts.digest(),
            max_length=self.max_length,
            normalize=self.normalize,
            dim=self.dim,
        )

    def require_chain(self) -> None:
        """Raise MismatchError unless each adapter was trained on what comes before it (LLM2Vec's defect D6)."""
        value = self.base_sha256
        for adapter in self.adapters:
            require_base(adapter, value, where=self.base)
            value = extend(value, adapter.sha256)

    def with_adapter(self, stage: str, sha256: str, training: Mapping[str, Any] | None = None) -> EncoderManifest:
        """The manifest of the encoder after one more stage."""
        record = AdapterRecord(stage=stage, sha256=sha256, base_lineage=self.lineage)
        entries = (*self.training, {"stage": stage, **training}) if training is not None else self.training
        return self.replace(adapters=(*self.adapters, record), training=entries, merged=False)

    def write(self, folder: Path) -> None:
        """Write rayvec.json, with the fingerprint beside the fields for those who read the file."""
        values = self.model_dump(mode="json")
        storage.write_json(folder / FILE, {**values, "fingerprint": self.fingerprint.model_dump()})

    @classmethod
    def read(cls, folder: Path) -> EncoderManifest:
        """Read rayvec.json. Raises VerificationError when it is damaged or its fingerprint is not its fields'."""
        values = storage.read_json(folder / FILE)
        stored = values.pop("fingerprint", None)
        try:
            manifest = cls.parse(values)
        except ValueError as error:
            raise VerificationError(f"{folder / FILE} is not an encoder's manifest ({error}); save it again") from None
        if stored != manifest.fingerprint.model_dump():
            raise VerificationError(f"{folder / FILE} was changed by hand: its fingerprint is not that of its fields")
        return manifest

    def check_files(self, folder: Path, *, weights: bool = True) -> None:
        """Raise VerificationError when a file of the folder, or one that is no weights, is missing or damaged."""
        for name, record in self.files.items():
            if weights or not Path(name).match(WEIGHTS):
                storage.check_file(folder / name, bytes_=record.bytes, sha256=record.sha256)


def record_files(folder: Path, names: list[str]) -> dict[str, FileRecord]:
    """Sizes and checksums of files of a folder."""
    paths = {name: folder / name for name in sorted(names)}
    return {n: FileRecord(bytes=p.stat().st_size, sha256=storage.sha256_file(p)) for n, p in paths.items()}


def extend(lineage: str, adapter_sha256: str) -> str:
    """The lineage after one more adapter."""
    return hashlib.sha256(f"{lineage}+{adapter_sha256}".encode()).hexdigest()


def require_base(adapter: AdapterRecord, lineage: str, *, where: str) -> None:
    """Raise MismatchError when an adapter is put on other weights than it was trained on."""
    if adapter.base_lineage != lineage:
        raise MismatchError(
            f"adapter {adapter.stage!r} was trained on weights {adapter.base_lineage[:12]}, but {where} with the "
            f"adapters before it is {lineage[:12]}; load it on the base and the adapters it was trained on, in order"
        )
