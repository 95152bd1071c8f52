"""Export: an encoder folder to one merged model for other libraries, and proof that they read the same vectors from it.

Knows how the folder is read again: by us, and by sentence-transformers where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.report import Report
from rayvec import storage, uris
from rayvec.config import Config
from rayvec.errors import RayvecError, UserError

if TYPE_CHECKING:
    import numpy as np

    from rayvec.modeling.encoder import TextEncoder

#: Short and long, several scripts, and one that is cut.
TEXTS = (
    "a",
    "join two or more path components, inserting a separator as needed",
    "今天天气很好，我们去公园散步。",
    "def encode(texts: list[str]) -> numpy.ndarray: ...",
    "How do I sort a dictionary by value?  ",
    "one sentence after another, and many of them. " * 400,
)
#: The least cosine at which vectors count as equal: other kernels add in another order, and bfloat16 has eight bits.
LEAST = {"float32": 0.9999, "bfloat16": 0.99}


class ExportConfig(Config):
    """Which encoder, where to, and what its vectors are compared on."""

    #: "tiny", an encoder folder, a URI, or a Hugging Face id.
    encoder: str = ""
    #: A local or mounted folder that is not there yet, or holds an export, which is replaced.
    output: str = ""
    #: Numbers of the weights that are written.
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Encoded by the encoder, and by who reads what was written; without an instruction and with each of the encoder's.
    texts: tuple[str, ...] = Field(TEXTS, min_length=1)


def export(config: ExportConfig) -> Report:
    """Export an encoder for sentence-transformers and transformers, and compare their vectors with ours.

    Raises UserError, or RayvecError when the vectors differ.
    """
    from rayvec.modeling.encoder import TextEncoder
    from rayvec.modeling.export import obstacle

    output = _output(config)
    encoder = TextEncoder.load(config.encoder, dtype=config.dtype)
    encoder.save(output, merged=True)
    told = obstacle(encoder)
    readers: dict[str, Callable[[str], np.ndarray]] = {"rayvec": _by_us(output, encoder, config)}
    if told is None and importlib.util.find_spec("sentence_transformers"):
        readers["sentence-transformers"] = _by_sentence_transformers(output, encoder, config)
    elif told is None:
        told = "not installed here, so not compared; pip install 'rayvec[eval]'"
    cosines = {name: _compare(name, read, encoder, config) for name, read in readers.items()}
    return {
        "encoder": config.encoder,
        "fingerprint": encoder.fingerprint.short,
        "dtype": config.dtype,
        "instructions": list(encoder.instructions),
        "least cosine": cosines,
        "sentence-transformers": told,
        "output": str(output),
    }


def _output(config: ExportConfig) -> Path:
    from rayvec.modeling import manifest

    for key in ("encoder", "output"):
        if not getattr(config, key):
            raise UserError(f"{key} is required; give it with --set {key}=…")
    if config.encoder.partition(":")[0] == "hash":
        raise UserError("a HashEncoder has no weights to export; give an encoder folder with --set encoder=DIR")
    if not uris.is_local(config.output):
        raise UserError(f"output = {config.output}: give a local or mounted folder, and copy it from there")
    output = uris.local_path(uris.absolute(config.output))
    if output.exists() and any(output.iterdir()):
        there = output / manifest.FILE
        if not there.exists() or not storage.read_json(there).get("merged"):
            raise UserError(f"{output} holds something else than an export; give a new folder with --set output=DIR")
    return output


def _by_us(output: Path, encoder: TextEncoder, config: ExportConfig) -> Callable[[str], np.ndarray]:
    written = type(encoder).load(output, dtype=config.dtype)
    return lambda name: written.encode(config.texts, encoder.instructions.get(name))


def _by_sentence_transformers(output: Path, encoder: TextEncoder, config: ExportConfig) -> Callable[[str], np.ndarray]:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(output), device=encoder.backbone.device.type)
    return lambda name: np.asarray(model.encode(list(config.texts), prompt_name=name or None), np.float32)


def _compare(reader: str, read: Callable[[str], np.ndarray], encoder: TextEncoder, config: ExportConfig) -> float:
    """The least cosine between the encoder's vectors and the reader's. Raises RayvecError when they differ."""
    from rayvec.evaluation.sts import cosines

    found = {}
    for name in ("", *encoder.instructions):
        found[name] = float(cosines(encoder.encode(config.texts, encoder.instructions.get(name)), read(name)).min())
    worst = min(found, key=lambda name: found[name])
    if found[worst] < LEAST[config.dtype]:
        asked = f" after the instruction {worst!r}" if worst else ""
        cure = "end prompts.instruction_format with a line break, or " if worst else ""
        raise RayvecError(
            f"{reader} reads other vectors from {config.output}{asked}: cosine {found[worst]:.5f}, less than "
            f"{LEAST[config.dtype]}; {cure}use the folder with rayvec alone"
        )
    return found[worst]
