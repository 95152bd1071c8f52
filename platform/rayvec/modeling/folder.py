"""An encoder folder, opened: its manifest, tokenizer and adapters, all checked; no weights loaded yet.

Knows folders, manifests and tokenizers. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayvec.errors import MismatchError, UserError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling import adapters, manifest, references
from rayvec.modeling.manifest import EncoderManifest
from rayvec.modeling.prompts import Prompts, template_for
from rayvec.modeling.text_tokenizer import TextTokenizer

DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class EncoderFolder:
    """What is needed to load an encoder: weights, adapters on top of them in merge order, and how to read texts."""

    manifest: EncoderManifest
    weights: Path
    adapters: tuple[Path, ...]
    tokenizer: TextTokenizer

    def with_settings(self, **changes: Any) -> EncoderFolder:
        """The same weights read otherwise: pooling, prompts, max_length, normalize, attention, attention_window.

        `prompts` may be whole Prompts, or those of their fields that change. Another pooling brings its own ending.
        """
        old, prompts = self.manifest, changes.pop("prompts", {})
        if not isinstance(prompts, Prompts):
            pooling = changes.get("pooling", old.pooling)
            ending = _ending(pooling) if pooling != old.pooling else {}
            prompts = old.prompts.changed({**ending, **prompts})
        new = old.replace(**changes, prompts=prompts)
        tokenizer = TextTokenizer(self.tokenizer.tokenizer, new.prompts, new.max_length)
        return replace(self, manifest=new, tokenizer=tokenizer)

    def after(self, stages: int) -> EncoderFolder:
        """The encoder as it was after its first so many stages. Raises UserError when it has fewer, or is merged."""
        record = self.manifest
        if stages > len(record.adapters) or (record.merged and stages < len(record.adapters)):
            have = f"{len(record.adapters)} stages" + (", merged into one model" if record.merged else "")
            raise UserError(f"stages = {stages}: {record.base} with its adapters has {have}; ask for what is there")
        kept = record.replace(adapters=record.adapters[:stages], training=record.training[:stages])
        return replace(self, manifest=kept, adapters=self.adapters[:stages])

    def reading(self, max_length: int) -> EncoderFolder:
        """The same encoder with another max_length. Raises UserError for more than the model has positions."""
        from transformers import AutoConfig

        _check_length(max_length, AutoConfig.from_pretrained(str(self.weights)))
        return self.with_settings(max_length=max_length)

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder's fingerprint."""
        return self.manifest.fingerprint


def open_encoder(reference: str | Path, *, base: str | Path | None = None, verify: bool = True) -> EncoderFolder:
    """Open an encoder folder, or a plain transformers model as an encoder with usual settings.

    `base` says where the base model is when it is not where the manifest says. Raises UserError when something is
    not there, MismatchError when base or adapters are others than the manifest's, VerificationError when damaged.
    """
    folder = references.resolve(reference)
    if not (folder / manifest.FILE).exists():
        return open_model(reference)
    record = EncoderManifest.read(folder)
    record.require_chain()
    if verify:
        record.check_files(folder)
    tokenizer = TextTokenizer.load(folder, record.prompts, record.max_length)
    if record.merged:
        return EncoderFolder(record, folder, (), tokenizer)
    weights = _base_of(folder, record, base)
    names = adapter_names(record)
    stages = [adapter.stage for adapter in record.adapters]
    records = adapters.read_records([folder / n for n in names], record.base_sha256, where=record.base, stages=stages)
    if records != record.adapters:
        raise MismatchError(f"the adapters in {folder} are not those of its {manifest.FILE}; copy the folder whole")
    return EncoderFolder(record, weights, tuple(folder / name for name in names), tokenizer)


def open_tokenizer(reference: str | Path) -> EncoderFolder:
    """Open what reads texts alone: no weights are fetched, read or verified, those of a base are not even looked for.

    Of a plain model, whose weights no manifest tells, the fingerprint then fits no encoder.
    """
    folder = references.resolve(reference, weights=False)
    if not (folder / manifest.FILE).exists():
        return open_model(reference, verify=False)
    record = EncoderManifest.read(folder)
    record.check_files(folder, weights=False)
    return EncoderFolder(record, folder, (), TextTokenizer.load(folder, record.prompts, record.max_length))


def open_model(
    reference: str | Path,
    *,
    adapter_folders: Sequence[str | Path] = (),
    stages: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    prompts: Prompts | None = None,
    verify: bool = True,
    **settings: Any,
) -> EncoderFolder:
    """Open a plain transformers model, with adapters in merge order, as an encoder.

    `stages` names the adapters that do not say what they are; `tokenizer` is a folder to take it from, by default the
    model's. Without `verify` the weights are not looked at, and the fingerprint is none.
    """
    from rayvec.modeling.backbone import read_config

    weights = references.resolve(reference, weights=verify)
    if (weights / adapters.SETTINGS).is_file() and not (weights / "config.json").is_file():
        raise UserError(
            f"{reference} is a LoRA adapter without its base; open it with TextEncoder.from_llm2vec, and give the "
            "folder that its save() writes"
        )
    config = read_config(weights)
    prompts = prompts or _usual_prompts(str(reference), settings.get("pooling", "mean"))
    length = max_length or min(DEFAULT_MAX_LENGTH, _positions(config))
    _check_length(length, config)
    reader = TextTokenizer.load(tokenizer or weights, prompts, length)
    paths = tuple(references.resolve(folder) for folder in adapter_folders)
    base_sha256 = references.weights_sha256(weights) if verify else "not read"
    record = EncoderManifest.parse(
        {
            "base": references.canonical(reference),
            "base_sha256": base_sha256,
            "adapters": adapters.read_records(paths, base_sha256, where=str(reference), stages=stages),
            "prompts": prompts,
            "max_length": length,
            "dim": int(config.get_text_config().hidden_size),
            "tokenizer": reader.digest,
            **settings,
        }
    )
    return EncoderFolder(record, weights, paths, reader)


def _positions(config: Any) -> int:
    """How many tokens a model of this transformers configuration can read."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_MAX_LENGTH)


def _check_length(max_length: int, config: Any) -> None:
    if max_length > _positions(config):
        raise UserError(f"max_length {max_length} is more than the model's {_positions(config)} positions; lower it")


def _usual_prompts(name: str, pooling: str) -> Prompts:
    return Prompts(template=template_for(name), **_ending(pooling))


def _ending(pooling: str) -> dict[str, bool]:
    """Whether an end-of-sequence token comes after everything: it is what last-token pooling reads."""
    return {"append_eos": pooling == "last_token"}


def _base_of(folder: Path, record: EncoderManifest, base: str | Path | None) -> Path:
    """The folder of the base model, checked to be the very weights that the adapters were trained on."""
    reference = record.base if base is None else base
    try:
        weights = references.resolve(reference)
    except UserError as error:
        raise UserError(
            f"{folder} is an encoder on top of {record.base}, which is not there ({error}); put it there, give "
            "base=PATH, or use a merged export"
        ) from None
    if references.weights_sha256(weights) != record.base_sha256:
        raise MismatchError(
            f"{reference} is not the base that {folder} was trained on (weights {record.base_sha256[:12]}, found "
            f"{references.weights_sha256(weights)[:12]}); give base=PATH of that one"
        )
    return weights


def adapter_names(record: EncoderManifest) -> list[str]:
    """Where each adapter lies in the folder: adapters/1-mntp, adapters/2-simcse, …"""
    return [f"adapters/{i}-{adapter.stage}" for i, adapter in enumerate(record.adapters, start=1)]


def write_folder(
    path: Path, record: EncoderManifest, tokenizer: TextTokenizer, config: Any, adapter_folders: Sequence[Path]
) -> EncoderManifest:
    """Write an adapter folder: tokenizer, config.json, adapters; rayvec.json last, so that it stands for the whole."""
    path.mkdir(parents=True, exist_ok=True)
    for name, source in zip(adapter_names(record), adapter_folders, strict=True):
        adapters.copy(source, path / name)
    tokenizer.save(path)
    config.save_pretrained(str(path))
    written = written_files(path, [*adapter_names(record), "."])
    record = record.replace(files=manifest.record_files(path, written))
    record.write(path)
    return record


def written_files(path: Path, folders: Sequence[str]) -> list[str]:
    """The files directly in these folders of an encoder folder, without the manifest, hidden files and reports."""
    skipped = {manifest.FILE, "report.json", "config.yaml", "README.md"}
    files = (file for folder in folders for file in sorted((path / folder).iterdir()) if file.is_file())
    return [str(f.relative_to(path)) for f in files if f.name not in skipped and not f.name.startswith(".")]
