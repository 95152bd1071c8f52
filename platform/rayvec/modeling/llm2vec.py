"""Opening what McGill-NLP/llm2vec saved: base → MNTP adapter → SimCSE or supervised adapter, as one encoder folder.

To convert published adapters once, and use the folder with every job from then on:

    python -c 'from rayvec import TextEncoder; TextEncoder.from_llm2vec(
        "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp", "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-supervised", compat="llm2vec"
    ).save("encoders/sheared-llama")'

What such a folder holds: adapter_config.json (which names the base, or the adapter folder below),
adapter_model.safetensors, tokenizer files, and llm2vec_config.json where `LLM2Vec.save` wrote it. Knows those files and
`folder.open_model`. Knows no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import PositiveInt

from rayvec import storage
from rayvec.config import Config
from rayvec.errors import MismatchError, UserError
from rayvec.modeling import adapters, references
from rayvec.modeling.compat import Llm2VecReading
from rayvec.modeling.folder import EncoderFolder, open_model
from rayvec.modeling.manifest import PoolingName
from rayvec.modeling.prompts import Prompts, template_for

FILE = "llm2vec_config.json"
Compat = Literal["llm2vec"]

POOLINGS: dict[str, PoolingName] = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "eos_token": "last_token",
    "last_token": "last_token",
    "bos_token": "bos",
}
# The reference picks a chat template by the base's exact name; every other base, Llama 3.1 too, is read without one.
TEMPLATES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
    "mistralai/Mistral-7B-Instruct-v0.2": "inst",
    "meta-llama/Llama-2-7b-chat-hf": "inst",
    "google/gemma-2-9b-it": "gemma_bos",
    "Qwen/Qwen2-1.5B-Instruct": "qwen",
    "Qwen/Qwen2-7B-Instruct": "qwen",
}
# What its eos_token pooling puts after everything, by the base's name, then by its family.
ENDINGS = {
    "meta-llama/Meta-Llama-3-8B": "<|end_of_text|>",
    "meta-llama/Meta-Llama-3-8B-Instruct": "",
    "llama": " </s>",
    "mistral": " </s>",
    "gemma": "<eos>",
    "qwen2": "<|endoftext|>",
}
# How the published second adapters are called; they are of no use without the MNTP adapter that they were trained on.
SECOND = re.compile(r"-mntp-(unsup-simcse|supervised)$")


class Settings(Config):
    """llm2vec_config.json, with the reference's own defaults."""

    pooling_mode: Literal["mean", "weighted_mean", "eos_token", "last_token", "bos_token"] = "mean"
    max_length: PositiveInt = 512
    doc_max_length: PositiveInt = 400
    skip_instruction: bool = True

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """The folder's settings; where there is no file, the defaults."""
        if not (folder / FILE).exists():
            return cls()
        try:
            return cls.parse(storage.read_json(folder / FILE))
        except UserError as error:
            raise UserError(f"{folder / FILE}: {error}") from None


class Published(NamedTuple):
    """An adapter folder, the name it was asked for by, and the name of what it was trained on ("" when not said)."""

    name: str
    folder: Path
    below: str


def open_llm2vec(
    mntp: str | Path,
    adapter: str | Path | None = None,
    *,
    base: str | Path | None = None,
    compat: Compat | None = None,
) -> EncoderFolder:
    """Open published adapters in merge order: `mntp` on the base, then `adapter`.

    The base is the one that the MNTP adapter's adapter_config.json names, unless given. Where the first folder was
    itself trained on an adapter folder, that one comes before it, so a second adapter that names its MNTP folder can be
    given alone. The last folder's llm2vec_config.json gives pooling and lengths; the tokenizer is the first adapter's,
    or the base's.

    `compat="llm2vec"` reads texts by the reference's rules (see `compat`) and gives its unnormalised vectors, so that
    published results can be repeated. Without it texts are read as every encoder here reads them, under the same
    template and pooling: cut by tokens at max_length, the template never pooled, vectors of length 1.

    Raises UserError when something is not there or not said, MismatchError when the adapters are known not to belong
    together.
    """
    chain = _chain(mntp, follow_hub=base is None)
    if adapter is not None:
        second = _published(adapter)
        _require_on(second, chain[-1])
        chain.append(second)
    if len(chain) == 1 and SECOND.search(chain[0].name):
        raise UserError(f"{mntp} was trained on top of an MNTP adapter; give that one first, and {mntp} as adapter=")
    settings = Settings.read(chain[-1].folder)
    first, weights = chain[0], _base(chain[0], base)
    tokenizer = next((p.folder for p in chain if (p.folder / "tokenizer_config.json").exists()), None)
    return open_model(
        weights,
        adapter_folders=[p.folder for p in chain],
        stages=["mntp", *(_stage(p) for p in chain[1:])],
        tokenizer=tokenizer,
        max_length=settings.max_length,
        prompts=_as_reference(settings, first.below, weights) if compat else _as_ours(settings, first.below),
        pooling=POOLINGS[settings.pooling_mode],
        # The reference attends to everything, whatever window the family's configuration has.
        attention_window="full",
        normalize=compat is None,
    )


def _published(reference: str | Path) -> Published:
    folder = references.resolve(reference)
    if not (folder / adapters.SETTINGS).exists():
        raise UserError(f"{reference} is no adapter: it has no {adapters.SETTINGS}; give a folder that LLM2Vec saved")
    settings = storage.read_json(folder / adapters.SETTINGS)
    below = str(settings.get("base_model_name_or_path") or "").rstrip("/")
    revision = settings.get("revision")
    if revision not in (None, "main") and references.HUB_ID.fullmatch(below) and not Path(below).exists():
        below = f"{below}@{revision}"
    return Published(str(reference).rstrip("/"), folder, below)


def _chain(reference: str | Path, *, follow_hub: bool) -> list[Published]:
    """The adapter, after the adapter that it was trained on, if any. The hub is asked for that only if `follow_hub`."""
    top = _published(reference)
    known = bool(top.below) and (follow_hub or Path(top.below).is_dir())
    return [_published(top.below), top] if known and references.holds(top.below, adapters.SETTINGS) else [top]


def _require_on(second: Published, first: Published) -> None:
    """Raise MismatchError when the second adapter is known to be trained on another one than the first.

    Names tell it when both are names; the published second adapters name their MNTP adapter or the base below it.
    """
    told = second.below
    if not told or told in (first.name, first.below, str(first.folder)):
        return
    if (Path(told) / adapters.SETTINGS).exists():
        other = adapters.digest(Path(told)) != adapters.digest(first.folder)
    else:
        is_name = all(references.HUB_ID.fullmatch(name) and not Path(name).exists() for name in (told, first.name))
        names = [Path(references.hub_parts(name)[0]).name for name in (told, first.name, first.below)]
        other = is_name and names[0] not in names[1:]
    if other:
        raise MismatchError(
            f"{second.name} was trained on {told}, not on {first.name}; give {told} as the MNTP adapter"
        )


def _base(first: Published, base: str | Path | None) -> str | Path:
    """The base's reference, checked to be there and to be a model."""
    chosen = base or first.below
    if not chosen:
        raise UserError(f"{first.name} does not say what it was trained on; give base=PATH")
    try:
        folder = references.resolve(chosen)
    except UserError as error:
        raise UserError(f"{first.name} was trained on {first.below}; give base=PATH of it ({error})") from None
    if (folder / adapters.SETTINGS).exists():
        raise UserError(f"{chosen} is an adapter, no base; give the model that it was trained on as base=PATH")
    return chosen


def _as_ours(settings: Settings, name: str) -> Prompts:
    if not settings.skip_instruction:
        raise UserError(f"{FILE} says skip_instruction: false; only compat='llm2vec' pools instructions")
    # The instruction stands before the text as these models saw it, so that one from their cards means the same.
    return Prompts(
        template=template_for(name),
        instruction_format="{instruction} ",
        append_eos=settings.pooling_mode == "eos_token",
    )


def _as_reference(settings: Settings, name: str, weights: str | Path) -> Prompts:
    ending = ""
    if settings.pooling_mode == "eos_token":
        family = _config(weights).get("model_type", "")
        ending = ENDINGS.get(name, ENDINGS.get(family, ""))
    reading = Llm2VecReading(
        doc_max_length=settings.doc_max_length, skip_instruction=settings.skip_instruction, ending=ending
    )
    return Prompts(template=TEMPLATES.get(name, "none"), instruction_format="{instruction} ", compat=reading)


def _config(weights: str | Path) -> dict[str, Any]:
    file = references.resolve(weights) / "config.json"
    return storage.read_json(file) if file.exists() else {}


def _stage(published: Published) -> str:
    names = [name for name in ("supervised", "simcse") if name in Path(published.name).name.lower()]
    return names[0] if names else "contrastive"
