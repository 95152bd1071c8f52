"""Vectors out of embedding parts: batches as float32 arrays, ranges of rows over several parts, random samples of rows.

Knows parquet parts, their manifest records and numpy. Knows no FAISS and no Ray.

Shapes: N vectors of a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rayvec import storage
from rayvec.data.vector_types import to_floats
from rayvec.errors import VerificationError
from rayvec.schema import EMBEDDING, SCALE_FIELD

Vectors = npt.NDArray[np.float32]
BATCH_ROWS = 8192


@dataclass(frozen=True)
class Part:
    """One embeddings part: where it lies, what its manifest says of it, and the row of the index where it begins.

    rows: those that are taken; left_out: the others, ascending, as they are counted in the file.
    """

    uri: str
    bytes: int
    sha256: str
    rows: int
    start: int
    left_out: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), compare=False)

    @property
    def stop(self) -> int:
        """The row of the index after its last."""
        return self.start + self.rows


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one part, counted within the part over the rows that are taken."""

    part: Part
    start: int
    stop: int


def parts_of(
    uris: Sequence[str], records: Sequence[dict[str, Any]], left_out: npt.NDArray[np.int64] | None = None
) -> list[Part]:
    """The parts that hold rows, in the order of the manifest, which is the order of the index's rows.

    left_out: rows that are not taken, ascending, counted through all parts.
    """
    parts: list[Part] = []
    start = first = 0
    for uri, record in zip(uris, records, strict=True):
        stop = first + int(record["rows"])
        gone = _between(left_out, first, stop)
        if stop - first > len(gone):
            parts.append(Part(uri, int(record["bytes"]), str(record["sha256"]), stop - first - len(gone), start, gone))
            start = parts[-1].stop
        first = stop
    return parts


def _between(rows: npt.NDArray[np.int64] | None, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Those of ascending rows in [start, stop), counted from start."""
    if rows is None:
        return np.empty(0, np.int64)
    low, high = np.searchsorted(rows, [start, stop])
    return rows[low:high] - start


def check_part(part: Part) -> None:
    """Raise VerificationError when a part's size, checksum or number of rows is not what the manifest says."""
    storage.check_file(part.uri, bytes_=part.bytes, sha256=part.sha256)
    with _open(part.uri) as file:
        rows = part.rows + len(part.left_out)
        if file.metadata.num_rows != rows:
            raise VerificationError(
                f"{part.uri} holds {file.metadata.num_rows} rows where its manifest says {rows}; embed again"
            )


def slices(parts: Sequence[Part], start: int, stop: int) -> list[Slice]:
    """The pieces of the parts that make up rows [start, stop) of the index."""
    pieces = ((part, max(start, part.start), min(stop, part.stop)) for part in parts)
    return [Slice(part, low - part.start, high - part.start) for part, low, high in pieces if low < high]


def read_slice(piece: Slice, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a slice in batches, with those of the columns that are there; row groups outside it are not read."""
    with _open(piece.part.uri) as file:
        there = set(file.schema_arrow.names)
        columns = [name for name in columns if name in there]
        start = first = 0  # start counts the rows taken, first all rows of the file
        for group in range(file.metadata.num_row_groups):
            gone = _between(piece.part.left_out, first, first + file.metadata.row_group(group).num_rows)
            first += file.metadata.row_group(group).num_rows
            stop = start + file.metadata.row_group(group).num_rows - len(gone)
            if start < piece.stop and piece.start < stop:
                low, high = max(piece.start, start) - start, min(piece.stop, stop) - start
                batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
                yield from _within(_taken(batches, gone) if len(gone) else batches, low, high)
            start = stop


def _taken(batches: Iterator[pa.RecordBatch], left_out: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """The batches of a row group without some of its rows."""
    start = 0
    for batch in batches:
        taken = np.ones(batch.num_rows, np.bool_)
        taken[_between(left_out, start, start + batch.num_rows)] = False
        yield batch.filter(pa.array(taken))
        start += batch.num_rows


def _within(batches: Iterator[pa.RecordBatch], low: int, high: int) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        first, last = max(low - start, 0), min(high - start, batch.num_rows)
        if first < last:
            yield batch.slice(first, last - first)
        start += batch.num_rows
        if start >= high:
            return


def _open(uri: str) -> pq.ParquetFile:
    fs, path = storage.filesystem(uri)
    return pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True)


def runs(parts: Sequence[Part], rows: npt.NDArray[np.int64]) -> list[Slice]:
    """The slices that hold exactly these ascending rows: for few rows in long runs, since each run is read apart."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    return [piece for run in np.split(rows, cuts) if len(run) for piece in slices(parts, int(run[0]), int(run[-1]) + 1)]


def read_vectors(pieces: Sequence[Slice], dim: int, *, normalize: bool) -> Iterator[Vectors]:
    """The vectors of the slices in order, float32 [N, dim] a batch.

    Raises VerificationError when one is of another dimension, not finite, or, where they are normalised, zero.
    """
    for piece in pieces:
        for batch in _vector_batches(piece):
            yield _checked(batch, piece.part.uri, dim, normalize=normalize)


def read_sampled(
    pieces: Sequence[Slice], rows: npt.NDArray[np.int64], dim: int, *, normalize: bool
) -> Iterator[Vectors]:
    """Those vectors of the slices whose rows (numbered as in the index, ascending) are wanted; others are not checked.

    Raises as read_vectors does.
    """
    for piece in pieces:
        for batch, wanted in _sampled(piece, rows):
            # Most often all of them are wanted, or few: a batch that is wanted whole is not copied.
            some = batch if len(wanted) == batch.num_rows else batch.take(pa.array(wanted))
            yield _checked(some, piece.part.uri, dim, normalize=normalize)


def read_rows(parts: Sequence[Part], rows: npt.NDArray[np.int64], dim: int, *, normalize: bool) -> Vectors:
    """Some rows, numbered as in the index and ascending, of parts that hold them all; float32 [len(rows), dim].

    Raises as read_vectors does.
    """
    vectors, done = np.empty((len(rows), dim), np.float32), 0
    for part in parts:
        for batch, wanted in _sampled(Slice(part, 0, part.rows), rows):
            found = _floats(batch, part.uri, dim)
            place = vectors[done : done + len(wanted)]
            if len(wanted) < batch.num_rows:
                # Without a mode, numpy makes a copy of `out` first, so that a wrong row leaves it as it was.
                found = np.take(found, wanted, axis=0, out=place, mode="clip")
            _check(found, part.uri, normalize=normalize, out=place)
            done += len(wanted)
    return vectors[:done]


def _sampled(piece: Slice, rows: npt.NDArray[np.int64]) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]:
    """The batches of a slice that hold wanted rows, and which rows of the batch those are."""
    start = piece.part.start + piece.start
    for batch in _vector_batches(piece):
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        if low < high:
            yield batch, rows[low:high] - start
        start += batch.num_rows


def _vector_batches(piece: Slice) -> Iterator[pa.RecordBatch]:
    return read_slice(piece, [EMBEDDING, SCALE_FIELD.name])


def _checked(batch: pa.RecordBatch, uri: str, dim: int, *, normalize: bool) -> Vectors:
    return _check(_floats(batch, uri, dim), uri, normalize=normalize)


def _floats(batch: pa.RecordBatch, uri: str, dim: int) -> Vectors:
    scales = batch.column(SCALE_FIELD.name) if SCALE_FIELD.name in batch.schema.names else None
    vectors = as_array(batch.column(EMBEDDING), scales)
    if vectors.shape[1] != dim:
        raise VerificationError(f"{uri} holds vectors of {vectors.shape[1]} dimensions, not {dim}")
    return vectors


def _check(vectors_ND: Vectors, uri: str, *, normalize: bool, out: Vectors | None = None) -> Vectors:
    """The vectors, at length 1 where asked, in `out` where it is given. One look finds all that can be wrong."""
    squares_N = _squares(vectors_ND)
    if not np.isfinite(squares_N).all():
        raise VerificationError(f"{uri} holds vectors that are not finite; embed that part again")
    if normalize:
        if not squares_N.all():
            raise VerificationError(f"{uri} holds zero vectors, which have no direction; embed again")
        out = np.empty_like(vectors_ND) if out is None else out
        return np.divide(vectors_ND, np.sqrt(squares_N)[:, None], out=out, casting="same_kind")
    if out is None or out is vectors_ND:
        return vectors_ND
    out[:] = vectors_ND
    return out


def _squares(vectors_ND: Vectors) -> npt.NDArray[np.floating]:
    """Squared lengths [N]: of float32 sums, unless one is too large or too small for them."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    if np.isfinite(squares_N).all() and squares_N.min(initial=1) > np.finfo(np.float32).tiny:
        return squares_N
    exact_ND = vectors_ND.astype(np.float64)
    return np.einsum("nd,nd->n", exact_ND, exact_ND)


def as_array(column: pa.Array, scales: pa.Array | None = None) -> Vectors:
    """A column of vectors, stored in any type, as float32 [N, D]; float32 values are not copied."""
    if not pa.types.is_fixed_size_list(column.type):
        raise VerificationError(f"column {EMBEDDING!r} is {column.type}, not a fixed-size list of numbers; embed again")
    return to_floats(column, scales)


def unit(vectors_ND: Vectors) -> Vectors:
    """Each vector at length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    if lengths.all():
        return np.divide(vectors_ND, lengths, dtype=vectors_ND.dtype)
    return np.divide(vectors_ND, lengths, out=np.zeros_like(vectors_ND), where=lengths > 0)


def sample_rows(count: int, size: int, seed: int, avoid: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """Rows drawn uniformly without replacement, ascending; none of `avoid` as long as enough others are left.

    >>> sample_rows(10, 3, seed=1).shape
    (3,)
    """
    generator = np.random.default_rng(seed)
    pool: npt.NDArray[np.int64] | int = count
    if avoid is not None and count - len(avoid) >= size:
        pool = np.setdiff1d(np.arange(count, dtype=np.int64), avoid, assume_unique=True)
    return np.sort(generator.choice(pool, size=min(size, count), replace=False)).astype(np.int64)
