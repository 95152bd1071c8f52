"""Encoding published documents again: a vector of another text, or of another encoder, is found."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayvec import schema, storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.encoding.publish import manifest, publish, settle_duplicates
from rayvec.encoding.reencode import EVERY, reencode
from rayvec.encoding.shards import Plan
from rayvec.encoding.sink import part_bytes
from rayvec.encoding.work import complete, prepare
from rayvec.errors import MismatchError, UserError, VerificationError
from rayvec.modeling.tokens import TokenBatch
from tests.corpora import MarkedEncoder, documents, marked, work_on


def published(output: Path, count: int = 30, unit_rows: int = 10, **options: Any) -> EmbeddingsDataset:
    """What a run with these options publishes."""
    pairs = [(id_, f"{text}. " * 12) for id_, text in documents(count)]  # of several windows each
    work = work_on(output, pairs, **options)
    units = work.source.units(unit_rows)  # type: ignore[attr-defined]
    records = [complete(work, unit, prepare(work, unit, marked("")), marked("")) for unit in units]
    names = ("instruction", "title", "dtype", "keep_text", "long", "window_tokens", "overlap_tokens")
    settings = {"source": {"kind": "list"}, **{name: getattr(work, name) for name in names}}
    plan = Plan((), tuple(units), work.fingerprint, settings)
    publish(work.sink, manifest(plan, settle_duplicates(work.sink, units, records), work.sink, "marked"))
    return EmbeddingsDataset.open(str(output))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float16"},
        {"instruction": "Find it:"},
        {"long": "windows", "window_tokens": 16, "overlap_tokens": 4},
        {"long": "mean", "window_tokens": 16},
    ],
    ids=str,
)
def test_vectors_are_found_to_be_the_encoders(tmp_path: Path, options: dict[str, Any]) -> None:
    dataset = published(tmp_path, count=10, **options)
    assert reencode(dataset, marked, marked) == {"reencoded": 1}


def test_one_document_is_taken_of_every_hundred_parts(tmp_path: Path) -> None:
    dataset = published(tmp_path, count=EVERY + 1, unit_rows=1)
    assert reencode(dataset, marked, marked) == {"reencoded": 2}


def test_a_vector_of_another_text_is_found(tmp_path: Path) -> None:
    """Every vector moves to the next row, with all checksums made new: nothing else can see that."""
    dataset = published(tmp_path)
    for part, uri in zip(dataset.manifest["parts"], dataset.part_uris, strict=True):
        [table] = EmbeddingsDataset(dataset.uri, {**dataset.manifest, "parts": [part]}).iter_tables()
        place = table.schema.get_field_index(schema.EMBEDDING)
        rolled = table[schema.EMBEDDING].take(pa.array(np.roll(np.arange(table.num_rows), 1)))
        data = part_bytes(table.set_column(place, table.schema.field(place), rolled))
        storage.write_bytes(uri, data)
        part |= {"bytes": len(data), "sha256": storage.sha256_bytes(data)}
    assert dataset.verify(full=True)["faults"] == 0
    with pytest.raises(VerificationError, match=r"the vector is not what the encoder makes of its text \(cosine"):
        reencode(dataset, marked, marked)


class Turned(MarkedEncoder):
    """As on a machine of other arithmetic: vectors at a cosine of 0.997 to those here."""

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        vectors_ND = super().encode_tokens(batch)
        aside_ND = np.roll(vectors_ND, 1, axis=1)
        aside_ND -= (aside_ND * vectors_ND).sum(axis=1, keepdims=True) * vectors_ND
        aside_ND /= np.linalg.norm(aside_ND, axis=1, keepdims=True)
        turned_ND: np.ndarray = 0.997 * vectors_ND + np.sqrt(1 - 0.997**2) * aside_ND
        return turned_ND.astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "is_refused"), [("float32", True), ("auto", False), ("bfloat16", False), ("int8", False)]
)
def test_the_arithmetic_of_another_machine_is_allowed_for(tmp_path: Path, precision: str, is_refused: bool) -> None:
    dataset = published(tmp_path)
    dataset.manifest["settings"]["precision"] = precision
    with pytest.raises(VerificationError, match=r"cosine 0\.997") if is_refused else contextlib.nullcontext():
        assert reencode(dataset, lambda _: Turned(dim=16), marked) == {"reencoded": 1}


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    dataset = published(tmp_path)
    with pytest.raises(MismatchError, match="dim"):
        reencode(dataset, lambda _: MarkedEncoder(dim=32), marked)


def test_what_cannot_be_encoded_again_is_told(tmp_path: Path) -> None:
    def gone(_: str) -> MarkedEncoder:
        raise UserError("there is no such encoder")

    assert reencode(published(tmp_path / "a"), gone, marked) == {
        "reencoded": 0,
        "not_reencoded": "the encoder cannot be loaded: there is no such encoder",
    }
    dataset = published(tmp_path / "b", keep_text=False)
    assert reencode(dataset, marked, marked) == {"reencoded": 0, "not_reencoded": "the texts were not kept"}
