"""Export: one merged checkpoint that plain transformers and sentence-transformers load without our code.

The folder is an encoder folder too (rayvec.json, merged), with the same fingerprint as the adapters it was made of.
`is_causal: false` in config.json is what makes transformers (≥ 5.2) and servers read the decoder both ways. Knows the
files of the other tools. Knows no training.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayvec import storage
from rayvec.modeling import references
from rayvec.modeling.card import write_encoder_card
from rayvec.modeling.folder import written_files
from rayvec.modeling.manifest import EncoderManifest, record_files
from rayvec.modeling.prompts import TEMPLATES

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder

log = logging.getLogger(__name__)

# Our poolings by sentence-transformers' names.
POOLING_MODES = {"mean": "mean", "weighted_mean": "weightedmean", "last_token": "lasttoken", "bos": "cls"}


def export(encoder: TextEncoder, path: Path) -> Path:
    """Write the merged folder; it appears whole.

    Where sentence-transformers could not give the same vectors, its files are left out and a warning says why.
    """
    manifest = encoder.folder.manifest.replace(merged=True)
    with storage.committed_folder(path) as folder:
        written = _write_model(encoder, folder)
        write_encoder_card(folder, manifest)
        manifest.replace(files=record_files(folder, written)).write(folder)
    return path


def write(encoder: TextEncoder, path: Path, *, stage: str, training: Mapping[str, Any] | None) -> None:
    """Write what a stage that trained all weights made: a whole model, whose lineage ends with these weights.

    The folder may hold other things (the run's own files); rayvec.json comes last.
    """
    path.mkdir(parents=True, exist_ok=True)
    written = _write_model(encoder, path)
    manifest = encoder.folder.manifest.with_adapter(stage, references.weights_sha256(path), training)
    manifest = manifest.replace(merged=True)
    write_encoder_card(path, manifest)
    manifest.replace(files=record_files(path, written)).write(path)


def _write_model(encoder: TextEncoder, folder: Path) -> list[str]:
    """Weights, tokenizer and the files of other tools; the names of what the manifest has to vouch for."""
    tokenizer = _tokenizer(encoder)
    tokenizer.save_pretrained(str(folder))
    encoder.backbone.save_pretrained(folder)
    return written_files(folder, [".", *_sentence_transformers(encoder, tokenizer, folder)])


def _tokenizer(encoder: TextEncoder) -> Any:
    """A copy that others can use as it is: it cuts at our length, pads on the right, and ends with what we append."""
    tokenizer = copy.deepcopy(encoder.folder.tokenizer.tokenizer)
    tokenizer.model_max_length = encoder.max_length
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if closing := _closing(encoder):
        # Else sentence-transformers would count it as a token of its prompts.
        tokenizer.add_special_tokens({"extra_special_tokens": [closing]}, replace_extra_special_tokens=False)
        _append(tokenizer, closing)
    if encoder.folder.manifest.prompts.append_eos:
        _append(tokenizer, tokenizer.eos_token)
    return tokenizer


def _closing(encoder: TextEncoder) -> str | None:
    """What the chat template puts after a text, where that is one token of its own, which no text is cut into."""
    closing = TEMPLATES[encoder.folder.manifest.prompts.template].suffix
    return closing if closing in encoder.folder.tokenizer.tokenizer.get_added_vocab() else None


def _append(tokenizer: Any, token: str) -> None:
    """Make the tokenizer itself put a token after each text."""
    from tokenizers import Tokenizer

    backend, token_id = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids(token)
    if backend.encode("a").ids[-1] == token_id:
        return
    state = json.loads(backend.to_str())
    state["post_processor"] = _ending(state["post_processor"], token, token_id)
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor


def _ending(processor: dict[str, Any] | None, eos: str, eos_id: int) -> dict[str, Any]:
    """A tokenizer's post-processor with one more token at the end; templates do not stack, so its own is extended."""
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    empty: dict[str, Any] = {"type": "TemplateProcessing", "single": [text], "pair": [text], "special_tokens": {}}
    chain = processor.get("processors", [processor]) if processor else []
    template: dict[str, Any] = copy.deepcopy(next((p for p in chain if p["type"] == "TemplateProcessing"), empty))
    template["single"].append({"SpecialToken": {"id": eos, "type_id": 0}})
    template["special_tokens"][eos] = {"id": eos, "ids": [eos_id], "tokens": [eos]}
    others = [p for p in chain if p["type"] != "TemplateProcessing"]
    return {"type": "Sequence", "processors": [*others, template]}


def _sentence_transformers(encoder: TextEncoder, tokenizer: Any, folder: Path) -> list[str]:
    """Write modules.json and what it names; the sub-folders written, none when the vectors could not be the same."""
    if reason := obstacle(encoder):
        log.warning("%s: written without modules.json, which sentence-transformers reads: %s", folder, reason)
        return []
    manifest, names = encoder.folder.manifest, ["Transformer"]
    if manifest.pooling == "mean" and _unpooled_special(encoder):
        names.append("WordWeights")
    names += ["Pooling", *(["Normalize"] if manifest.normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{n}" if i else "", "type": f"sentence_transformers.models.{n}"}
        for i, n in enumerate(names)
    ]
    _write_list(folder / "modules.json", modules)
    storage.write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length})
    storage.write_json(folder / "config_sentence_transformers.json", _prompts(manifest))
    paths = [str(module["path"]) for module in modules[1:]]
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    pooling = f"{names.index('Pooling')}_Pooling"
    storage.write_json(folder / pooling / "config.json", _pooling(manifest))
    if "WordWeights" in names:
        storage.write_json(folder / "1_WordWeights" / "config.json", _weights(encoder, tokenizer))
    return paths


def obstacle(encoder: TextEncoder) -> str | None:
    """Why sentence-transformers could not give our vectors, and what to choose; None where it can."""
    manifest = encoder.folder.manifest
    if manifest.prompts.template != "none" and (manifest.prompts.pool_special or not _closing(encoder)):
        end = TEMPLATES[manifest.prompts.template].suffix.strip()
        return f"it cannot tell {end}, the chat format's end, from the text; train with prompts.template=none for it"
    if manifest.prompts.compat is not None:
        return "it cuts and pools by other rules than LLM2Vec's reference; load the adapters without compat"
    if encoder.dim != encoder.backbone.dim:
        return "its checkpoints do not cut vectors to fewer dimensions; give truncate_dim by hand"
    if manifest.pooling == "weighted_mean" and _unpooled_special(encoder):
        return "its weighted mean counts the tokens that the tokenizer adds; train with pooling=mean for it"
    return None


def _unpooled_special(encoder: TextEncoder) -> bool:
    """Whether the tokenizer, as it is exported, adds tokens that we do not pool."""
    adds = encoder.folder.tokenizer.adds_special_tokens or _closing(encoder) is not None
    return adds and not encoder.folder.manifest.prompts.pool_special


def _prompts(manifest: EncoderManifest) -> dict[str, Any]:
    """Chat format and instructions as sentence-transformers' prompts; it leaves them out of the pooling as we do."""
    prompts = {name: manifest.prompts.surroundings(text).prefix for name, text in manifest.prompts.instructions.items()}
    bare = manifest.prompts.surroundings().prefix
    return {
        "model_type": "SentenceTransformer",
        "prompts": {"query": bare, "document": bare, **prompts},
        "default_prompt_name": "document" if bare else None,
        "similarity_fn_name": "cosine",
    }


def _pooling(manifest: EncoderManifest) -> dict[str, Any]:
    """The pooling's settings under the names that all versions since 2.0 read."""
    mode = POOLING_MODES[manifest.pooling]
    legacy = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "weightedmean": "pooling_mode_weightedmean_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    flags = {key: name == mode for name, key in legacy.items()}
    # Pooling the first token reads the row's first, which an instruction does not change.
    return {"word_embedding_dimension": manifest.dim, **flags, "include_prompt": manifest.pooling == "bos"}


def _weights(encoder: TextEncoder, tokenizer: Any) -> dict[str, Any]:
    """Weight 0 for the tokens that the tokenizer adds, 1 for all others: the mean is then the text's alone."""
    size = int(encoder.backbone.config.get_text_config().vocab_size)
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    vocabulary = [by_id.get(index, f"[unused {index}]") for index in range(size)]
    encoding = tokenizer.backend_tokenizer.encode("a")
    added = {t for t, flag in zip(encoding.tokens, encoding.special_tokens_mask, strict=True) if flag}
    return {"vocab": vocabulary, "word_weights": dict.fromkeys(sorted(added), 0.0), "unknown_word_weight": 1.0}


def _write_list(path: Path, values: list[dict[str, Any]]) -> None:
    storage.write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
