"""Encoding a few published documents again: whether their vectors are still what the encoder makes of their texts.

Runs the same work on one document that a run does on a unit, into a folder of its own. Knows no cluster.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from rayvec import schema, uris
from rayvec.data.embeddings import EmbeddingsDataset, Part, document_ids, document_rows, read_part, vectors
from rayvec.data.units import Unit, UnitData
from rayvec.encoding.direct import text_of
from rayvec.encoding.stages import tokenizer_of
from rayvec.encoding.work import POSITION, Work, complete, prepare
from rayvec.errors import UserError, VerificationError
from rayvec.modeling.encoder import Encoder, Tokenizing

#: One document for so many parts, and at least one.
EVERY = 100
#: The least cosine between what is stored and what is made now, another machine's arithmetic allowed for: by what is
#: stored, and by what was computed in. Of binary vectors one bit in fifty may turn: where a number is next to 0.
LEAST_COSINE = {"float32": 1 - 1e-4, "float16": 1 - 1e-3, "int8": 1 - 1e-3, "binary": 0.96}
#: "auto" may have been bfloat16 there, and be float32 here. int8 rounds by the processor's instructions, each way up to
#: 0.995 from float32.
LEAST_COMPUTED = {"float32": 1.0, "bfloat16": 0.995, "auto": 0.995, "int8": 0.98}


@dataclass(frozen=True)
class _Document:
    """A source of one document."""

    table: pa.Table

    def read(self, unit: Unit) -> UnitData:
        """See work.Readable."""
        del unit
        return UnitData(self.table)


def reencode(
    dataset: EmbeddingsDataset, load_encoder: Callable[[str], Encoder], load_tokenizer: Callable[[str], Tokenizing]
) -> dict[str, Any]:
    """Encode one document of every hundred parts again, with the encoder that the manifest names; how many those were.

    Raises VerificationError (exit status 7) when a vector is another, MismatchError when the encoder is.
    """
    if not dataset.manifest["settings"]["keep_text"]:
        return {"reencoded": 0, "not_reencoded": "the texts were not kept"}
    reference = dataset.manifest["encoder"]
    try:
        encoder = load_encoder(reference)
    except UserError as error:
        return {"reencoded": 0, "not_reencoded": f"the encoder cannot be loaded: {error}"}
    dataset.fingerprint.require(encoder.fingerprint, mine=dataset.uri, theirs=f"the encoder {reference}")
    count = 0
    for part, number in _sample(dataset):
        _compare(dataset, part, number, encoder, load_tokenizer)
        count += 1
    return {"reencoded": count}


def _sample(dataset: EmbeddingsDataset) -> Iterator[tuple[Part, int]]:
    """A document of each hundred parts that hold any; the same each time."""
    chance = random.Random(dataset.manifest["plan_sha256"])
    parts = [part for part in dataset.parts if part["documents"]]
    for start in range(0, len(parts), EVERY):
        part = chance.choice(parts[start : start + EVERY])
        yield part, chance.randrange(part["documents"])


def _compare(
    dataset: EmbeddingsDataset, part: Part, number: int, encoder: Encoder, load_tokenizer: Callable[[str], Tokenizing]
) -> None:
    table = read_part(uris.join(dataset.uri, part["file"]))
    stored = table.filter(pa.array(document_rows(table) == number))
    id_ = document_ids(table)[number].as_py()
    settings = dataset.manifest["settings"]
    kept = {field.name for field in fields(Work)} & settings.keys() - {"source"}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            source=_Document(_document(stored, id_)),
            output=folder,
            reference=dataset.manifest["encoder"],
            fingerprint=dataset.fingerprint,
            load_encoder=lambda _: encoder,
            load_tokenizer=load_tokenizer,
            **{name: settings[name] for name in kept},
        )
        unit = Unit(part["unit"], "document", part["file"], 0, 1, 0, 1, 0)
        record = complete(work, unit, prepare(work, unit, tokenizer_of(work)), encoder)
        made = work.sink.table(record)
    where = f"{part['file']}: of the document {id_!r}"
    if made.num_rows != stored.num_rows:
        raise VerificationError(f"{where} there are {stored.num_rows} rows, and the encoder now makes {made.num_rows}")
    least = float(_cosines(vectors(stored), vectors(made)).min())
    allowed = min(LEAST_COSINE[dataset.manifest["dtype"]], LEAST_COMPUTED[settings.get("precision", "float32")])
    if not least >= allowed:
        raise VerificationError(
            f"{where} the vector is not what the encoder makes of its text (cosine {least:.6f}); "
            f"delete units/{part['unit']}.json and run again"
        )


def _document(rows: pa.Table, id_: str) -> pa.Table:
    """A document from its row, or from the rows of its windows."""
    text = text_of(rows)
    columns = {
        schema.ID: pa.array([id_], pa.string()),
        schema.TITLE: rows[schema.TITLE].slice(0, 1),
        schema.TEXT: pa.array([text], pa.string()),
        POSITION: pa.array([0], pa.int64()),
    }
    return pa.table(columns)


def _cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    cosines_N: np.ndarray = (a_ND * b_ND).sum(axis=1) / (np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1))
    return cosines_N
