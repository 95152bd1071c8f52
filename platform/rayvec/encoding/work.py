"""The work on one unit, without Ray: read and tokenize it; encode, check and commit it.

Every record of the unit comes out once: as a row, or as a line that says why not. Knows sources, encoders and the
sink. Knows no cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from rayvec import schema, storage
from rayvec.data.ids import hash_ids, repeats
from rayvec.data.units import Rejected, Unit, UnitData
from rayvec.data.vector_types import shortened, to_columns
from rayvec.encoding.attempts import Attempts, Outcome, Rows, survive
from rayvec.encoding.sink import DUPLICATE, Line, Record, Sink
from rayvec.encoding.spent import Spent
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.encoder import Encoder, Tokenizing, Vectorizing
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.windows import Windowing, Windows, join, select
from rayvec.schema import Long, VectorType

POSITION = "position"
NONFINITE = "nonfinite"
ALONE = nullcontext()  # the turn of one who need not wait for others
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
    long: Long = "truncate"
    #: How long documents are cut, where they are.
    window_tokens: int = 256
    overlap_tokens: int = 0
    #: Tokens that are read of a document; None for as many as the encoder is set to.
    max_length: int | None = None
    #: The first dimensions of the vectors, which alone are kept; None for all.
    dimensions: int | None = None
    normalize: bool = False

    @property
    def unit_length(self) -> bool:
        """Whether vectors have length 1."""
        return self.normalize or self.fingerprint.normalize

    @property
    def by_window(self) -> bool:
        """Whether a row is a window, and not a document."""
        return self.long in ("windows", "late")

    @property
    def windowing(self) -> Windowing:
        """How documents are cut. Raises UserError when the overlap is as large as the window."""
        return Windowing(self.window_tokens, self.overlap_tokens, late=self.long == "late")

    @property
    def sink(self) -> Sink:
        """Where the parts go."""
        return Sink(self.output)


@dataclass
class Prepared:
    """A unit that is read and tokenized.

    `windows` says which tokens each vector is pooled from; `windows.text` are rows of `documents`, each of which has at
    least one. `lines` are the records refused so far, `spent` is what was spent so far.
    """

    documents: pa.Table
    tokens: TokenBatch
    windows: Windows
    lines: list[Line]
    spent: Spent = field(default_factory=Spent)
    #: Of the payload's values; see UnitData.counts.
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def prepare(work: Work, unit: Unit, tokenizer: Tokenizing) -> Prepared:
    """Read and tokenize a unit. A record that the tokenizer fails on, or dies of, is refused."""
    attempts = Attempts.begin(work.output, unit.name, "read")
    spent = Spent()
    with spent.timed("read"):
        data = work.source.read(unit)
        texts, before_N = texts_of(data.table, work.title)
    with spent.timed("tokenize"):
        outcome = survive(lambda rows: cut(work, tokenizer, [texts[i] for i in rows]), len(texts), attempts)
    refused = [_line(unit, rejected) for rejected in data.rejected]
    rows = np.array([row for rows, _ in outcome.pieces for row in rows], np.int64)
    tokens, windows = join([(rows, *pieces) for rows, pieces in outcome.pieces])
    prepared = Prepared(
        documents=data.table.take(rows) if len(rows) < len(texts) else data.table,
        tokens=tokens,
        windows=windows.after(before_N[rows]),
        lines=refused + _failed(unit, data.table, outcome),
        spent=spent,
        counts=data.counts,
    )
    attempts.finish()
    return prepared


def cut(work: Work, tokenizer: Tokenizing, texts: Sequence[str]) -> tuple[TokenBatch, Windows]:
    """What the encoder is given of these texts. Raises UserError when the settings leave a text no room."""
    if work.long == "truncate":
        tokens = tokenizer.tokenize(texts, work.instruction)
        return tokens, Windows.uncut(tokens)
    return tokenizer.cut(texts, work.windowing, work.instruction)


def complete(
    work: Work, unit: Unit, prepared: Prepared, encoder: Encoder, turn: AbstractContextManager[Any] = ALONE
) -> Record:
    """Encode a prepared unit and commit it. A unit that another attempt has committed is left as it is.

    turn: held while encoding, and not while committing: a second thread encodes the next unit meanwhile, and never two
    encode at once. What it takes is counted to `prepared.spent`.
    """
    done = work.sink.record(unit.name)
    if done is not None:
        return done
    documents, spent = prepared.documents, prepared.spent
    document_R = documents_of_rows(work, prepared)
    with turn:
        attempts = Attempts.begin(work.output, unit.name, "encode")
        with spent.timed("encode"):
            outcome = survive(lambda rows: encoded(work, encoder, prepared, rows), documents.num_rows, attempts)
            vectors_RD = gather(work, outcome, document_R)
            retry_unsound(work, encoder, prepared, document_R, vectors_RD, outcome)
    spent.tokens, spent.places = len(prepared.tokens.input_ids), encoder.places(prepared.tokens.lengths)
    with spent.timed("write"):
        record = _commit(work, unit, prepared, document_R, vectors_RD, outcome)
    attempts.finish()
    return record


def _commit(
    work: Work, unit: Unit, prepared: Prepared, document_R: Rows, vectors_RD: np.ndarray, outcome: Outcome[np.ndarray]
) -> Record:
    documents = prepared.documents
    embedded = np.array([row for row in range(documents.num_rows) if row not in outcome.failures], np.int64)
    kept, repeated = _without_repeats(unit, documents, embedded)
    positions = documents[POSITION].to_numpy()[kept]
    lines = prepared.lines + _failed(unit, documents, outcome) + repeated
    table = part_of(work, prepared, document_R, vectors_RD, np.flatnonzero(np.isin(document_R, kept)))
    record = work.sink.commit(unit.name, table, positions, lines, prepared.counts)
    assert record.input_records == documents.num_rows + len(prepared.lines), "every record comes out once"
    return record


def texts_of(table: pa.Table, title: Title) -> tuple[list[str], np.ndarray]:
    """What is encoded, and how many characters of it stand before the text: its title, if any, on a line of its own."""
    texts: list[str] = table[schema.TEXT].to_pylist()
    if title == "ignore":
        return texts, np.zeros(len(texts), np.int64)
    heads = [f"{head}\n" if head else "" for head in table[schema.TITLE].to_pylist()]
    before_N = np.fromiter((len(head) for head in heads), np.int64, len(heads))
    return [head + text for head, text in zip(heads, texts, strict=True)], before_N


def documents_of_rows(work: Work, prepared: Prepared) -> Rows:
    """The document that each row of the part is of: a row a window, or a row a document."""
    return prepared.windows.text if work.by_window else np.arange(prepared.documents.num_rows)


def encoded(work: Work, encoder: Vectorizing, prepared: Prepared, rows: Rows) -> np.ndarray:
    """The vectors of the part's rows that are of these documents, in order."""
    tokens, windows = prepared.tokens, prepared.windows
    if len(rows) < prepared.documents.num_rows:
        tokens, windows = select(tokens, windows, rows)
    vectors_WD = encoder.encode_windows(tokens, windows) if work.long == "late" else encoder.encode_tokens(tokens)
    assert vectors_WD.shape == (len(windows), encoder.dim), "one vector a window"
    if work.long == "mean":
        vectors_WD = _means(vectors_WD, windows)
    elif work.dimensions is None and not work.normalize:
        return vectors_WD  # to the bit as the encoder gives them
    return shortened(vectors_WD, work.dimensions, normalize=work.unit_length)


def _means(vectors_WD: np.ndarray, windows: Windows) -> np.ndarray:
    """The mean of each text's windows, weighted by their tokens."""
    first_N = np.flatnonzero(windows.number() == 0)
    weights_W1 = windows.lengths[:, None].astype(np.float64)
    sums_ND = np.add.reduceat(vectors_WD * weights_W1, first_N) if len(first_N) else np.zeros_like(vectors_WD)
    means_ND: np.ndarray = sums_ND / np.add.reduceat(weights_W1, first_N) if len(first_N) else sums_ND
    return means_ND.astype(np.float32)


def gather(work: Work, outcome: Outcome[np.ndarray], document_R: Rows) -> np.ndarray:
    """The vectors in the order of the rows; as float16 if they are stored so. Rows that failed are zero."""
    dtype = np.float16 if work.dtype == "float16" else np.float32
    vectors_RD = np.zeros((len(document_R), work.dimensions or work.fingerprint.dim), dtype)
    with np.errstate(over="ignore"):  # what does not fit the type turns infinite, and is found below
        for documents, piece in outcome.pieces:
            vectors_RD[_rows_of(document_R, documents)] = piece
    return vectors_RD


def _rows_of(document_R: Rows, documents: Rows) -> slice:
    """The rows of adjacent documents, which stand together."""
    start, stop = np.searchsorted(document_R, [documents[0], documents[-1] + 1])
    return slice(int(start), int(stop))


def retry_unsound(
    work: Work,
    encoder: Vectorizing,
    prepared: Prepared,
    document_R: Rows,
    vectors_RD: np.ndarray,
    outcome: Outcome[np.ndarray],
) -> None:
    """Encode alone each document of which a vector is not finite, or zero; refuse it when that is no better."""
    for document in np.unique(document_R[~_sound(vectors_RD)]).tolist():
        if document in outcome.failures:
            continue
        rows = _rows_of(document_R, np.array([document]))
        with np.errstate(over="ignore"):
            vectors_RD[rows] = encoded(work, encoder, prepared, np.array([document]))
        if not _sound(vectors_RD[rows]).all():
            outcome.failures[document] = NONFINITE


def _sound(vectors_ND: np.ndarray) -> np.ndarray:
    sound_N: np.ndarray = np.isfinite(vectors_ND).all(axis=1) & vectors_ND.any(axis=1)
    return sound_N


def _without_repeats(unit: Unit, documents: pa.Table, embedded: Rows) -> tuple[Rows, list[Line]]:
    """The rows to keep: of those with the same id the first; and a line for each of the others."""
    chosen = documents.select([schema.ID, schema.TEXT, POSITION]).take(embedded)
    later, first = repeats(hash_ids(chosen[schema.ID]))
    positions = chosen[POSITION].to_numpy()
    lines = [
        duplicate_line(unit, chosen.slice(int(row), 1), unit, int(positions[kept]))
        for row, kept in zip(later, first, strict=True)
    ]
    return np.delete(embedded, later), lines


def part_of(work: Work, prepared: Prepared, document_R: Rows, vectors_RD: np.ndarray, kept: Rows) -> pa.Table:
    """The kept rows as a part: id, title, text, payload, the window's columns, embedding, n_tokens, truncated."""
    documents = prepared.documents
    documents = _of_windows(documents, prepared.windows, kept) if work.by_window else documents.take(document_R[kept])
    dropped = {POSITION} if work.keep_text else {POSITION, schema.TEXT}
    fields = [field for field in documents.schema if field.name not in dropped]
    columns = [documents[field.name] for field in fields]
    stored = to_columns(vectors_RD[kept], work.dtype)
    n_tokens_R, truncated_R = _token_facts(work, prepared)
    columns += [
        *stored.values(),
        pa.array(n_tokens_R[kept].astype(np.int32)),
        pa.array(truncated_R[kept]),
    ]
    fields += [*stored, pa.field(schema.N_TOKENS, pa.int32()), pa.field(schema.TRUNCATED, pa.bool_())]
    return pa.table(columns, schema=pa.schema(fields)).combine_chunks()


def _of_windows(documents: pa.Table, windows: Windows, kept: Rows) -> pa.Table:
    """The kept windows as rows: with ids and texts of their own, and what says where they are from."""
    of_row, numbers = windows.text[kept], windows.number()[kept]
    start, end = windows.char_start[kept], windows.char_end[kept]
    texts = documents[schema.TEXT].to_pylist()  # not taken row by row: a long text would stand there for each window
    passages = [texts[document][a:b] for document, a, b in zip(of_row, start, end, strict=True)]
    rows = documents.drop_columns([schema.TEXT]).take(of_row)
    parents = rows[schema.ID]
    ids = schema.window_ids(parents.to_pylist(), numbers.tolist())
    own = {schema.ID: pa.array(ids, pa.string()), schema.TEXT: pa.array(passages, pa.string())}
    columns = [own[name] if name in own else rows[name] for name in documents.schema.names]
    places = [parents, pa.array(numbers.astype(np.int32)), pa.array(start), pa.array(end)]
    return pa.table([*columns, *places], schema=pa.schema([*documents.schema, *schema.WINDOW_FIELDS]))


def _token_facts(work: Work, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of the part: its tokens, and whether some were left out.

    Tokens are those that were read for it, with what stands around it; of a late chunk, those that are pooled.
    """
    tokens, windows = prepared.tokens, prepared.windows
    if work.long == "late":
        return windows.lengths, np.zeros(len(windows), bool)
    if work.long == "mean":
        count = prepared.documents.num_rows
        return np.bincount(windows.text, tokens.lengths[windows.row], count), np.zeros(count, bool)
    return tokens.lengths, tokens.truncated


def _line(unit: Unit, rejected: Rejected) -> Line:
    source, position = unit.place(rejected.position)
    return {"unit": unit.name, "source": source, **rejected.to_json(), "position": position}


def _failed(unit: Unit, documents: pa.Table, outcome: Outcome[Any]) -> list[Line]:
    return [
        _row_line(unit, documents.slice(row, 1), reason, outcome.details.get(row, ""))
        for row, reason in sorted(outcome.failures.items())
    ]


def duplicate_line(unit: Unit, row: pa.Table, kept: Unit, kept_position: int) -> Line:
    """The line of a record whose id an earlier one has: that at a position of a unit, which is kept."""
    source, position = kept.place(kept_position)
    first = {"unit": kept.name, "source": source, "position": position}
    return {**_row_line(unit, row, DUPLICATE, ""), "kept": first}


def _row_line(unit: Unit, row: pa.Table, reason: str, detail: str) -> Line:
    [values] = row.to_pylist()
    text = values.get(schema.TEXT)
    source, position = unit.place(values[POSITION])
    return {
        "unit": unit.name,
        "source": source,
        "position": position,
        "offset": None,
        "reason": reason,
        "id": values[schema.ID],
        "text_sha256": None if text is None else storage.sha256_bytes(text.encode()),
        "detail": detail,
    }
