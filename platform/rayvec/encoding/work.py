"""The work on one unit, without Ray: read and tokenize it; encode, check and commit it.

Every record of the unit comes out once: as a row, or as a line that says why not. Knows sources, encoders and the
sink. Knows no cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from rayvec import schema, storage
from rayvec.data.ids import hash_ids, repeats
from rayvec.data.units import Rejected, Unit, UnitData
from rayvec.encoding.attempts import Attempts, Outcome, Rows, survive
from rayvec.encoding.sink import DUPLICATE, Line, Record, Sink
from rayvec.modeling.encoder import Encoder, Tokenizing
from rayvec.modeling.tokens import TokenBatch, concatenate
from rayvec.schema import VectorType
from rayvec.storage import Fingerprint

POSITION = "position"
NONFINITE = "nonfinite"
Title = Literal["prepend", "ignore"]


class Readable(Protocol):
    """What gives the records of a unit; `data.sources.Source` does."""

    def read(self, unit: Unit) -> UnitData:
        """Every record of the unit, as a row or as refused. Raises MismatchError when its file has changed."""


@dataclass(frozen=True)
class Work:
    """What every worker needs to know. Plain data and two functions, so it can be sent to them."""

    source: Readable
    output: str
    reference: str
    fingerprint: Fingerprint
    load_encoder: Callable[[str], Encoder]
    load_tokenizer: Callable[[str], Tokenizing]
    instruction: str | None = None
    title: Title = "prepend"
    dtype: VectorType = "float32"
    keep_text: bool = True

    @property
    def sink(self) -> Sink:
        """Where the parts go."""
        return Sink(self.output)


@dataclass
class Prepared:
    """A unit that is read and tokenized: row i of `documents` has tokens i; `lines` are the records refused so far."""

    documents: pa.Table
    tokens: TokenBatch
    lines: list[Line]


def prepare(work: Work, unit: Unit, tokenizer: Tokenizing) -> Prepared:
    """Read and tokenize a unit. A record that the tokenizer fails on, or dies of, is refused."""
    attempts = Attempts.begin(work.output, unit.name, "read")
    data = work.source.read(unit)
    texts = _texts(data.table, work.title)
    outcome = survive(lambda rows: tokenizer.tokenize([texts[i] for i in rows], work.instruction), len(texts), attempts)
    refused = [_line(unit, rejected) for rejected in data.rejected]
    rows = np.array([row for rows, _ in outcome.pieces for row in rows], np.int64)
    prepared = Prepared(
        documents=data.table.take(rows) if len(rows) < len(texts) else data.table,
        tokens=concatenate([tokens for _, tokens in outcome.pieces]),
        lines=refused + _failed(unit, data.table, outcome),
    )
    attempts.finish()
    return prepared


def complete(work: Work, unit: Unit, prepared: Prepared, encoder: Encoder) -> Record:
    """Encode a prepared unit and commit it. A unit that another attempt has committed is left as it is."""
    done = work.sink.record(unit.name)
    if done is not None:
        return done
    attempts = Attempts.begin(work.output, unit.name, "encode")
    documents, tokens = prepared.documents, prepared.tokens
    outcome = survive(lambda rows: _encode(encoder, tokens, rows), len(tokens), attempts)
    vectors_ND = _gather(outcome, len(tokens), encoder.dim, work.dtype)
    _retry_unsound(encoder, tokens, vectors_ND, outcome)
    embedded = np.array([row for row in range(len(tokens)) if row not in outcome.failures], np.int64)
    lines = prepared.lines + _failed(unit, documents, outcome)
    kept, repeated = _without_repeats(unit, documents, embedded)
    table = _part(work, documents.take(kept), tokens.select(kept), vectors_ND[kept])
    positions = documents[POSITION].to_numpy()[kept]
    record = work.sink.commit(unit.name, table, positions, lines + repeated)
    assert record.input_records == len(tokens) + len(prepared.lines), "every record comes out once"
    attempts.finish()
    return record


def _texts(table: pa.Table, title: Title) -> list[str]:
    """What is encoded: the text, after its title on a line of its own if there is one."""
    texts: list[str] = table[schema.TEXT].to_pylist()
    if title == "ignore":
        return texts
    titles = table[schema.TITLE].to_pylist()
    return [f"{head}\n{text}" if head else text for head, text in zip(titles, texts, strict=True)]


def _encode(encoder: Encoder, tokens: TokenBatch, rows: Rows) -> np.ndarray:
    vectors_ND = encoder.encode_tokens(tokens if len(rows) == len(tokens) else tokens.select(rows))
    assert vectors_ND.shape == (len(rows), encoder.dim), "one vector a row"
    return vectors_ND


def _gather(outcome: Outcome[np.ndarray], count: int, dim: int, dtype: VectorType) -> np.ndarray:
    """The vectors in the order of the rows, in the type in which they are stored; rows that failed are zero."""
    vectors_ND = np.zeros((count, dim), dtype)
    with np.errstate(over="ignore"):  # what does not fit the type turns infinite, and is found below
        for rows, piece in outcome.pieces:
            vectors_ND[rows] = piece
    return vectors_ND


def _retry_unsound(encoder: Encoder, tokens: TokenBatch, vectors_ND: np.ndarray, outcome: Outcome[np.ndarray]) -> None:
    """Encode alone each row whose vector is not finite, or zero; refuse it when that is no better."""
    for row in np.flatnonzero(~_sound(vectors_ND)).tolist():
        if row in outcome.failures:
            continue
        with np.errstate(over="ignore"):
            vectors_ND[row] = _encode(encoder, tokens, np.array([row]))[0]
        if not _sound(vectors_ND[[row]])[0]:
            outcome.failures[row] = NONFINITE


def _sound(vectors_ND: np.ndarray) -> np.ndarray:
    sound_N: np.ndarray = np.isfinite(vectors_ND).all(axis=1) & vectors_ND.any(axis=1)
    return sound_N


def _without_repeats(unit: Unit, documents: pa.Table, embedded: Rows) -> tuple[Rows, list[Line]]:
    """The rows to keep: of those with the same id the first; and a line for each of the others."""
    chosen = documents.select([schema.ID, schema.TEXT, POSITION]).take(embedded)
    later, first = repeats(hash_ids(chosen[schema.ID]))
    positions = chosen[POSITION].to_numpy()
    lines = [
        duplicate_line(unit, chosen.slice(int(row), 1), {"unit": unit.name, "position": int(positions[kept])})
        for row, kept in zip(later, first, strict=True)
    ]
    return np.delete(embedded, later), lines


def _part(work: Work, documents: pa.Table, tokens: TokenBatch, vectors_ND: np.ndarray) -> pa.Table:
    """The columns of a part: id, title, text, payload, embedding, n_tokens, truncated."""
    dropped = {POSITION} if work.keep_text else {POSITION, schema.TEXT}
    fields = [field for field in documents.schema if field.name not in dropped]
    columns = [documents[field.name] for field in fields]
    embedding = schema.embedding_field(vectors_ND.shape[1], work.dtype)
    flat = pa.array(np.ascontiguousarray(vectors_ND).ravel(), embedding.type.value_type)
    columns += [
        pa.FixedSizeListArray.from_arrays(flat, type=embedding.type),
        pa.array(tokens.lengths.astype(np.int32)),
        pa.array(tokens.truncated),
    ]
    fields += [embedding, pa.field(schema.N_TOKENS, pa.int32()), pa.field(schema.TRUNCATED, pa.bool_())]
    return pa.table(columns, schema=pa.schema(fields)).combine_chunks()


def _line(unit: Unit, rejected: Rejected) -> Line:
    return {"unit": unit.name, "source": unit.uri, **rejected.to_json()}


def _failed(unit: Unit, documents: pa.Table, outcome: Outcome[Any]) -> list[Line]:
    return [
        _row_line(unit, documents.slice(row, 1), reason, outcome.details.get(row, ""))
        for row, reason in sorted(outcome.failures.items())
    ]


def duplicate_line(unit: Unit, row: pa.Table, kept: Mapping[str, Any]) -> Line:
    """The line of a record whose id an earlier one has; `kept` says which."""
    return {**_row_line(unit, row, DUPLICATE, ""), "kept": dict(kept)}


def _row_line(unit: Unit, row: pa.Table, reason: str, detail: str) -> Line:
    [values] = row.to_pylist()
    text = values.get(schema.TEXT)
    return {
        "unit": unit.name,
        "source": unit.uri,
        "position": values[POSITION],
        "offset": None,
        "reason": reason,
        "id": values[schema.ID],
        "text_sha256": None if text is None else storage.sha256_bytes(text.encode()),
        "detail": detail,
    }
