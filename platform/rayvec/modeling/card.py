"""Model cards: the README.md of an encoder folder, or of a decoder, in the form that the Hugging Face hub reads.

What a card says is in the manifest, whose `training` entries each hold a stage's configuration and last numbers; what
else a run has measured comes in as a `Course`. No card names a folder of the machine that it was written on. Knows
manifests and Markdown. Knows no weights.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayvec import storage, uris
from rayvec.modeling import references
from rayvec.modeling.manifest import EncoderManifest

FILE = "README.md"
#: What a stage logs of its work; no result.
WORKINGS = ("steps", "learning_rate", "gradient_norm", "tokens_per_second")
Rows = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Course:
    """What the run that made the folder has measured on its way."""

    #: First and last value, by the names of metrics.jsonl.
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: Where the picture of its curves is, as seen from the card.
    curves: str = ""


def write_encoder_card(folder: Path, manifest: EncoderManifest, course: Course | None = None) -> None:
    """Write the card of an encoder folder, whose other files, but for the manifest, are there already."""
    modules = (folder / "modules.json").exists()
    data: dict[str, Any] = {
        "library_name": "sentence-transformers" if modules else "transformers" if manifest.merged else "rayvec",
        "pipeline_tag": "feature-extraction",
        "tags": [
            "feature-extraction",
            "sentence-similarity",
            *(["llm2vec"] if manifest.attention == "bidirectional" else []),
            "rayvec",
        ],
    }
    if references.HUB_ID.fullmatch(manifest.base):  # the hub takes no other names
        data |= {
            "base_model": references.hub_parts(manifest.base)[0],
            "base_model_relation": "finetune" if manifest.merged else "adapter",
        }
    parts = [
        _encoder_heading(manifest),
        _encoder_use(manifest, sentence_transformers=modules),
        _reading(manifest),
        _lineage(manifest),
        _stages(manifest.training, manifest.base, course or Course()),
        _limits(
            f"A text of more than {manifest.max_length} tokens is cut; what comes after is not in its vector.",
            "base and data",
        ),
    ]
    _write(folder, data, parts)


def write_decoder_card(folder: Path, entry: Mapping[str, Any], course: Course | None = None) -> None:
    """Write the card of a decoder made from nothing; entry: its configuration and last numbers."""
    heading = "# Decoder\n\nA causal language model, trained from nothing by rayvec to be made a text encoder of."
    use = """
        ## Use

        ```python
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
        ```

        The next stage starts from it: `python -m jobs.train --recipe tiny.mntp --set start=path/to/this/folder`.
        """
    limits = _limits(
        "It was made to give an encoder its start, not to write text; nothing was done about what it says.", "data"
    )
    stages = _stages([{"stage": "pretrain", **entry}], "", course or Course())
    data = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["rayvec"]}
    _write(folder, data, [heading, textwrap.dedent(use).strip(), stages, limits])


def _write(folder: Path, data: Mapping[str, Any], parts: Iterable[str]) -> None:
    from huggingface_hub import ModelCardData

    text = "\n\n".join(part for part in parts if part)
    storage.write_bytes(folder / FILE, f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text}\n".encode())


def shown(reference: str, base: str = "") -> str:
    """A model or data as a card names it: embedded ones and the base's Hugging Face id whole, else the last component.

    >>> shown("embedded:tiny-decoder"), shown("/home/me/models/llama/"), shown("s3://bucket/runs/mntp")
    ('tiny-decoder', 'llama', 'mntp')
    >>> shown("org/model", base="org/model"), shown("out/mntp", base="org/model")
    ('org/model', 'mntp')
    """
    if reference == base and references.HUB_ID.fullmatch(base):
        return base
    return uris.name_of(reference.removeprefix(references.EMBEDDED))


def _encoder_heading(manifest: EncoderManifest) -> str:
    base = shown(manifest.base, manifest.base)
    # Adapters of others have no entry, and a whole model that became a base has no adapters.
    stages = max([a.stage for a in manifest.adapters], [str(e["stage"]) for e in manifest.training], key=len)
    way = " by the recipe of [LLM2Vec](https://arxiv.org/abs/2404.05961)" if stages else ""
    trained = f": {' → '.join(stages)}" if stages else " without any training"
    form = "One whole model" if manifest.merged else "LoRA adapters, merged into the base in order when they are loaded"
    return (
        f"# Text encoder made of {uris.name_of(base)}\n\n"
        f"{_code(base)} made a text encoder with rayvec{way}{trained}. A text becomes one vector of {manifest.dim} "
        f"numbers, and alike texts become near vectors. {form}."
    )


def _encoder_use(manifest: EncoderManifest, *, sentence_transformers: bool) -> str:
    named = [*manifest.prompts.instructions.values(), *_instructions(manifest.training)]
    instruction = named[0] if named else None
    asked = json.dumps(instruction, ensure_ascii=False)
    lines = [
        "## Use",
        "",
        "```python",
        "from rayvec import TextEncoder",
        "",
        'encoder = TextEncoder.load("path/to/this/folder")',
        f'vectors = encoder.encode(["a text", "another"])  # float32 [2, {manifest.dim}]',
        *([f'queries = encoder.encode(["a question"], instruction={asked})'] if instruction else []),
        "```",
        "",
    ]
    if not manifest.merged:
        base = shown(manifest.base, manifest.base)
        return "\n".join(
            [
                *lines,
                f"The base {_code(base)} is not in this folder; where it is not found by itself, say "
                '`TextEncoder.load(…, base="path/to/it")`.',
                'For transformers and sentence-transformers: `encoder.save("path/to/another", merged=True)` writes one '
                "model that needs",
                "neither the base nor rayvec.",
            ]
        )
    if sentence_transformers:
        lines.append('- sentence-transformers: `SentenceTransformer("path/to/this/folder").encode(texts)`')
    lines.append(
        '- transformers ≥ 5.2: `AutoModel.from_pretrained("path/to/this/folder")`; pool the text\'s tokens, not those '
        "that the tokenizer adds"
    )
    return "\n".join(lines)


def _instructions(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Those that queries were trained with."""
    for entry in entries:
        for pairs in (entry.get("config") or {}).get("data", {}).get("sets", ()):
            yield from pairs["instructions"]


def _reading(manifest: EncoderManifest) -> str:
    prompts = manifest.prompts
    window = ", sliding windows as in the base" if manifest.attention_window == "keep" else ", no sliding windows"
    pooled = "all tokens, those that the tokenizer adds too" if prompts.pool_special else "the text's own tokens"
    rows = [
        ("attention", manifest.attention + window),
        ("pooling", f"{manifest.pooling} over {pooled}"),
        ("vector", f"{manifest.dim} dimensions, " + ("length 1" if manifest.normalize else "not normalised")),
        ("tokens at most", str(manifest.max_length)),
        ("chat template", prompts.template),
        ("instruction", f"{_code(prompts.instruction_format)} before the text, not pooled"),
        *((f"instruction {name}", _code(text)) for name, text in prompts.instructions.items()),
        *([("after the text", "the end-of-sequence token")] if prompts.append_eos else []),
        *([("compatibility", "cut and pooled as LLM2Vec 0.2.3 does")] if prompts.compat else []),
        ("fingerprint", _code(manifest.fingerprint.short)),
    ]
    return "## How it reads texts\n\n" + _table(("setting", "value"), rows)


def _lineage(manifest: EncoderManifest) -> str:
    rows = [("base", shown(manifest.base, manifest.base), manifest.base_sha256)]
    rows += [(str(n), adapter.stage, adapter.sha256) for n, adapter in enumerate(manifest.adapters, start=1)]
    cells = [(number, _code(name), _code(sha256[:12])) for number, name, sha256 in rows]
    return "## What it is made of, in order\n\n" + _table(("order", "name", "SHA-256 begins with"), cells)


def _stages(entries: Iterable[Mapping[str, Any]], base: str, course: Course) -> str:
    listed = list(entries)
    if not listed:
        return ""
    parts = ["## Training"]
    for number, entry in enumerate(listed, start=1):
        last = course if number == len(listed) else Course()
        results = {name: value for name, value in entry.items() if name not in WORKINGS and isinstance(value, float)}
        rows = [*_settings(entry.get("config") or {}, base), *_results(results, last.spans)]
        parts.append(f"### {number}. {entry['stage']}\n\n{_table(('setting', 'value'), rows)}")
    measured = {name: span for name, span in course.spans.items() if name.startswith("eval/")}
    if measured:
        cells = [(_code(n.removeprefix("eval/")), f"{a:.4f}", f"{b:.4f}") for n, (a, b) in measured.items()]
        head = ("measured in the last stage", "before", "after")
        parts.append(_table(head, cells))
    if course.curves:
        parts.append(f"![Curves of the last stage]({course.curves})")
    return "\n\n".join(parts)


def _settings(config: Mapping[str, Any], base: str) -> Rows:
    """The settings that a reader asks for first; rayvec.json and training/config.yaml hold all of them."""
    if not {"stage", "data", "optimizer"} <= config.keys():  # saved by hand, with whatever was put in
        return
    stage, optimizer = config["stage"], config["optimizer"]
    if stage["kind"] != "pretrain":
        yield "started from", _code(shown(config["start"], base))
        yield "trained", _trained(stage)
    else:
        yield (
            "decoder",
            "{layers} layers, {hidden_size} wide, {heads} heads, {vocab_size} tokens".format(**stage["decoder"]),
        )
    yield "objective", _objective(stage)
    yield "steps", f"{config['steps']} × {_batch(config)}"
    warmup = f", {optimizer['warmup_steps']} steps of warm-up" if optimizer["warmup_steps"] else ""
    yield "learning rate", f"{optimizer['learning_rate']:g}, {optimizer['schedule']}{warmup}"
    yield "seed", str(config["seed"])
    yield "data", "; ".join(_data(config["data"]))


def _batch(config: Mapping[str, Any]) -> str:
    size, length = config["batch_size"], config["max_length"]
    if config["stage"]["kind"] in ("pretrain", "mntp"):
        return f"{size * length} tokens, of texts cut at {length}"
    examples = "pairs" if config["data"]["kind"] == "pairs" else "texts"
    return f"{size} {examples}, each text cut at {length} tokens"


def _trained(stage: Mapping[str, Any]) -> str:
    if not (lora := stage["lora"]):
        return "all weights"
    further = ", the one before trained further" if stage.get("continue_last") else ""
    return f"LoRA of rank {lora['rank']}, alpha {lora['alpha']}, dropout {lora['dropout']:g}{further}"


def _objective(stage: Mapping[str, Any]) -> str:
    if stage["kind"] == "pretrain":
        return "next token"
    if stage["kind"] == "mntp":
        how = "always by the mask token" if stage["masking"] == "all" else "80 % by the mask token, 10 % by another"
        return f"masked next token; {100 * stage['probability']:g} % of the tokens masked ({how})"
    kinds = {
        "simcse": "two views of a text",
        "supervised": f"pairs, hard negatives: {stage.get('hard_negatives')}",
    }
    shorter = stage.get("matryoshka") or ()
    dims = f"; also of the first {', '.join(map(str, shorter))} dimensions" if shorter else ""
    return f"InfoNCE at temperature {1 / stage['scale']:.3g} ({kinds[stage['kind']]}, the others of the batch){dims}"


def _data(data: Mapping[str, Any]) -> Iterable[str]:
    if data["kind"] == "pairs":
        for pairs in data["sets"]:
            weight = f", drawn {pairs['weight']:g} times as often" if pairs["weight"] != 1 else ""
            given = pairs["instructions"]
            said = f", instruction {_code(given[0])}" if given else ""
            more = f" and {len(given) - 1} more" if len(given) > 1 else ""
            yield f"{pairs['name']} ({_code(shown(pairs['path']))}{weight}{said}{more})"
        return
    for source in (data["source"], *data["also"]):
        packages = ", ".join(source["packages"]) or "all that was installed"
        yield _code(shown(source["path"])) if source["path"] else f"docstrings of Python packages ({packages})"
    if data["max_documents"]:
        yield f"the first {data['max_documents']} documents"


def _results(values: Mapping[str, float], spans: Mapping[str, tuple[float, float]]) -> Rows:
    for name, value in values.items():
        course = f"{spans[name][0]:.4g} → {spans[name][1]:.4g}" if name in spans else f"{value:.4g} at the end"
        yield f"{name.replace('_', ' ')} in training", course


def _limits(first: str, sources: str) -> str:
    return "\n".join(
        [
            "## Limits",
            "",
            f"- {first}",
            "- Nothing was measured but what stands above: no public benchmark, no bias, no other kind of text. What",
            "  is said to be *in training* was measured on training batches.",
            f"- The languages of the data are not on record; expect it to know no other than those of its {sources}.",
            f"- The licences of its {sources} hold; they are not on record here.",
        ]
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    """Text as it stands, on one line: line breaks as in Python."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return f"`` {plain} ``" if "`" in plain else f"`{plain}`"
