"""Search an index: dense by FAISS, lexical by BM25, documents by row. Everything is verified before it is read.

A version may have several segments and rows that are deleted: a search goes over all segments, and finds live rows.

Knows a version's folder. Knows no encoder (it is given vectors) and no HTTP.

Shapes: Q queries, K results a query, D dimensions of the encoder.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache

from rayvec.errors import UserError, VerificationError
from rayvec.fingerprint import Fingerprint
from rayvec.indexing import pca, places, shards, trial, versions
from rayvec.indexing.documents import Documents, SegmentDocuments
from rayvec.indexing.filters import Filter, is_filterable, mask
from rayvec.indexing.lexical import Lexical
from rayvec.indexing.lexical_segments import LexicalSegments, Texts
from rayvec.indexing.part import WHOLE, Part
from rayvec.indexing.ranking import NO_ROW, NO_SCORE, Ranking, Rows, check_k, nothing
from rayvec.indexing.segments import Segment, load_dropped, local, segments_of
from rayvec.indexing.selection import Selection
from rayvec.indexing.shards import Effort, Shard
from rayvec.indexing.vectors import Vectors, unit
from rayvec.schema import ID, TEXT
from rayvec.storage import JsonObject

__all__ = ["DOCUMENTS", "LEXICAL", "TRANSFORM", "Index", "Ranking", "projection_of"]

DOCUMENTS = "documents.parquet"
TRANSFORM = "transform.faiss"
LEXICAL = "lexical"
#: Documents of a selection that are compared one by one, and the share of them below which all selections are.
COMPARED_ONE_BY_ONE = 20_000
WIDEST = 32
T = TypeVar("T")
#: What was opened of a file or folder, by what it is and by its checksums.
Opened = dict[tuple[Any, ...], Any]

#: Selections that an open index keeps: a bit and a row's number for each document.
KEPT_SELECTIONS = 16


class Index:
    """One version of an index, open for search. Its methods may be called by several threads at once.

    `Index.open(uri)` takes the live version, and keeps it when another becomes live.
    """

    def __init__(
        self,
        folder: Path,
        manifest: JsonObject,
        threads: int | None = None,
        before: Index | None = None,
        part: Part = WHOLE,
    ) -> None:
        """Take `Index.open`, which verifies first; `manifest` holds the facts about the files in `folder`."""
        self.manifest = manifest
        self.part = part
        self.folder = folder
        #: Files that were verified, so that a version which shares them need not read them again.
        self.seen: frozenset[versions.Seen] = frozenset()
        self._opened: Opened = {}
        self._before: Opened = {} if before is None else before._opened
        self.fingerprint = Fingerprint.parse(manifest["fingerprint"])
        self.dim: int = manifest["dim"]
        #: Live documents; the rows of all segments, deleted ones too, are as many or more.
        self.count: int = manifest["count"]
        self._threads = threads or shards.PROCESS_THREADS
        self._normalize: bool = manifest["normalize"]
        self._effort = Effort(**manifest["search"])
        self._projection = projection_of(folder, manifest)
        self.segments = segments_of(manifest)
        self.dropped = load_dropped(folder, manifest)
        entries = part.shards(manifest)
        self.shards = [self._shard(facts) for facts in entries]
        #: For each shard, its own rows that are deleted; always these very arrays, so that FAISS's selectors are kept.
        self.dropped_of = [local(self.dropped, shard.start, shard.count) for shard in self.shards]
        self._documents = SegmentDocuments(
            [(segment.start, self._open_documents(segment)) for segment in self.segments], self.dropped
        )
        self._lock = threading.Lock()
        self._selections: LRUCache[str, Selection] = LRUCache(KEPT_SELECTIONS)
        self._columns: dict[str, pa.ChunkedArray] = {}
        has_words = manifest["lexical"] is not None and part.has_words
        self._lexical = self._open_lexical(folder) if has_words else None
        self._check_counts(folder, sum(int(facts["rows"]) for facts in entries))
        self._before = {}

    @classmethod
    def open(
        cls,
        uri: str | Path,
        version: str | None = None,
        threads: int | None = None,
        before: Index | None = None,
        part: Part = WHOLE,
    ) -> Self:
        """Open a version, the live one by default, after every size and checksum was verified.

        threads: OpenMP threads that a dense search takes; by default as OMP_NUM_THREADS says, or all cores. Give 1
        where many searches run at once.
        before: an open version of the same index. What the two share, by hard link and checksum, is neither verified
        nor read again: a version that adds a few documents opens in milliseconds. While it is open, it is not pruned.
        part: what of it is opened; the files of other parts are neither verified nor read.

        Raises UserError when there is no such index or version, VerificationError naming the file that is damaged.
        """
        folder = places.version_folder(uri, version, part)
        held = versions.hold(folder)
        try:
            manifest = versions.read_manifest(folder)
            seen = places.verify(uri, folder, manifest, part, frozenset() if before is None else before.seen)
            trial.run(trial.candidates(folder, part.cut(manifest), TRANSFORM))
            index = cls(folder, manifest, threads, before, part)
        except BaseException:
            os.close(held)
            raise
        index.seen = seen
        weakref.finalize(index, os.close, held)
        return index

    @property
    def version(self) -> str:
        """The version's name."""
        return str(self.manifest["version"])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `documents` gives."""
        return self._documents.names

    @property
    def has_lexical(self) -> bool:
        """Whether `lexical` may be called."""
        return self._lexical is not None

    def select(self, filter_: Filter) -> Selection:
        """The live documents that pass a filter, for the searches below; the last ones asked for are kept.

        Raises UserError for a column that is not there, or a value that cannot be compared with it.
        """
        key = filter_.model_dump_json(by_alias=True, exclude_unset=True)
        with self._lock:
            found = self._selections.get(key)
        if found is None:
            passing = np.array(mask(filter_, self._filtered))
            passing[self.dropped] = False
            found = Selection.of(passing, [(shard.start, shard.count) for shard in self.shards], key)
            with self._lock:
                self._selections[key] = found
        return found

    def vectors(self, rows: Sequence[int] | Rows) -> Vectors:
        """The vectors of these rows as the index holds them, at length 1: float32 [n, dim_index].

        A flat or graph index gives them as they came, a coded one as its code gives them back, and one that refines its
        answers from what it refines with. Where PCA or truncation cut dimensions, these are the ones that were kept.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        vectors = np.empty((len(wanted), int(self.manifest["dim_index"])), np.float32)
        starts = np.array([shard.start for shard in self.shards], np.int64)
        shard_of = np.searchsorted(starts, wanted, side="right") - 1
        for number in np.unique(shard_of).tolist():
            places = np.flatnonzero(shard_of == number)
            vectors[places] = self.shards[number].vectors(wanted[places])
        return unit(vectors)

    def column_types(self) -> dict[str, pa.DataType]:
        """The columns that `documents` gives, with their Arrow types."""
        return {field.name: field.type for field in self._documents.schema}

    def _filtered(self, name: str) -> pa.ChunkedArray:
        """A column to filter by. Raises UserError for a name that is none, and for the texts, which may be too many."""
        usable = ", ".join(name for name, kind in self.column_types().items() if name != TEXT and is_filterable(kind))
        if name not in self.columns:
            raise UserError(
                f"filter: no column {name!r}; the documents can be filtered by {usable} (what else was embedded with "
                "source.payload)"
            )
        if name == TEXT:
            raise UserError(f"filter: {TEXT} is searched and not filtered by; filter by one of {usable}")
        return self._column(name)

    def _column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, which stays in memory."""
        with self._lock:
            found = self._columns.get(name)
        if found is None:
            found = self._documents.column(name)
            with self._lock:
                self._columns[name] = found
        return found

    def dense(self, vectors_QD: npt.ArrayLike, k: int, selection: Selection | None = None) -> Ranking:
        """The k live documents nearest to each vector: rows and cosines [Q, min(k, count)], best first, no place empty.

        selection: the documents that may be found; all by default. Few are compared one by one; for more, the search is
        so many times as wide as they are fewer.

        Raises UserError when k is below 1, or a vector has another dimension, is not finite, or is zero.
        """
        queries = self.prepared(vectors_QD)
        return self.nearest(
            queries, check_k(k, self.count if selection is None else max(selection.count, 1)), selection
        )

    def nearest(self, queries: Vectors, k: int, selection: Selection | None = None) -> Ranking:
        """The k live documents of this part nearest to each of the `prepared` queries: [Q, k], or fewer of a part."""
        if not self.shards:
            return nothing(len(queries))
        shards.use_threads(self._threads)
        if selection is None:
            return shards.search(self.shards, queries, k, self._effort, self.dropped_of)
        share = self.count / max(selection.count, 1)
        if selection.count <= COMPARED_ONE_BY_ONE or share > WIDEST:
            pairs = zip(self.shards, selection.dropped_of, strict=True)
            return shards.merge_rankings([shard.exhaustive(queries, k, gone) for shard, gone in pairs], k)
        return shards.search(self.shards, queries, k, self._effort.widened(share), selection.dropped_of)

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The live row of each id, -1 where there is none. The first use reads the column of ids, and keeps it."""
        there = self._column(ID)
        places = pc.index_in(there, value_set=pa.array(ids, there.type)).fill_null(-1).to_numpy().astype(np.int64)
        places[self.dropped] = NO_ROW
        rows = np.full(len(ids), NO_ROW, np.int64)
        hits = np.flatnonzero(places >= 0)
        rows[places[hits]] = hits
        return rows

    def like(self, rows_Q: Rows, k: int, selection: Selection | None = None) -> Ranking:
        """The k live documents nearest to each of these rows, as `dense` ranks them, the row itself left out."""
        one_more = check_k(k, self.count) + 1
        found = self.nearest(self.vectors(rows_Q), min(one_more, self.count), selection)
        own = found.rows == rows_Q[:, None]
        order = np.argsort(own, axis=1, kind="stable")[:, :k]
        left_out = np.take_along_axis(own, order, axis=1)
        rows = np.where(left_out, NO_ROW, np.take_along_axis(found.rows, order, axis=1))
        scores = np.where(left_out, NO_SCORE, np.take_along_axis(found.scores, order, axis=1))
        return Ranking(rows, scores)

    def lexical(self, queries: Sequence[str], k: int, selection: Selection | None = None) -> Ranking:
        """The k best by BM25: rows and scores [Q, min(k, count)]; -1 where fewer documents share a word with the query.

        selection: the documents that may be found; all by default.

        Raises UserError when k is below 1, or the index was built without its lexical side.
        """
        if self._lexical is None:
            raise UserError("this index has no lexical side; build it again with --set lexical=true")
        return self._lexical.search(queries, k, None if selection is None else selection.allowed_N)

    def documents(self, rows: Sequence[int] | Rows, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The documents of these rows, in their order: id, title, text and payload, or the columns asked for."""
        return self._documents.read(rows, columns)

    def prepared(self, vectors_QD: npt.ArrayLike) -> Vectors:
        """The queries as the shards want them: checked, cut as the documents' vectors were, normalised, projected."""
        queries = np.asarray(vectors_QD, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] not in (self.dim, self.fingerprint.dim):
            raise UserError(f"query vectors have shape {list(queries.shape)}; this index takes [queries, {self.dim}]")
        queries = queries[:, : self.dim]  # documents whose vectors were cut are compared in what was kept
        if not np.isfinite(queries).all():
            raise UserError("a query vector is not finite (NaN or infinity); encode the query again")
        if not queries.any(axis=1).all():
            raise UserError("a query vector is zero, which has no direction; give a query that is not empty")
        if self._normalize:
            queries = unit(queries)
        return np.ascontiguousarray(self._projection(queries) if self._projection else queries)

    def lexical_drift(self) -> float:
        """The share by which a lexical score may differ from a fresh build's (see lexical_segments); 0 without any."""
        return self._lexical.drift() if self._lexical is not None else 0.0

    def _open_lexical(self, folder: Path) -> LexicalSegments:
        texts = []
        for segment in self.segments:
            lexical = self._open_texts(segment) if segment.lexical else None
            if lexical is not None:
                _check_count(segment.file(folder, LEXICAL), lexical.count, segment.rows)
            texts.append(
                Texts.of(segment.start, segment.rows, lexical, local(self.dropped, segment.start, segment.rows))
            )
        return LexicalSegments(texts, self.count)

    def _shard(self, facts: JsonObject) -> Shard:
        path, dim = self.folder / facts["file"], self.manifest["dim_index"]
        return self._once(
            self._key("shard", [facts["file"]], facts["start"]),
            lambda _: Shard.read(path, start=facts["start"], rows=facts["rows"], dim=dim),
            keep=True,
        )

    def _open_documents(self, segment: Segment) -> Documents:
        path = segment.file(self.folder, DOCUMENTS)
        key = self._key("documents", [str(path.relative_to(self.folder))])
        return self._once(key, lambda same: Documents(path, same))

    def _open_texts(self, segment: Segment) -> Lexical:
        path = segment.file(self.folder, LEXICAL)
        prefix = f"{path.relative_to(self.folder)}/"
        names = [name for name in self.manifest.get("files", ()) if name.startswith(prefix)]
        return self._once(self._key("lexical", names), lambda _: Lexical.load(path), keep=True)

    def _key(self, kind: str, names: Sequence[str], *more: Any) -> tuple[Any, ...]:
        """What these files hold, whatever they are called; None in it where the manifest does not say yet."""
        files = self.manifest.get("files", {})
        return (kind, *more, *(files[name]["sha256"] if name in files else None for name in names))

    def _once(self, key: tuple[Any, ...], make: Callable[[T | None], T], *, keep: bool = False) -> T:
        """What the version before has opened already, as it is (keep) or to be made anew from; else made."""
        if None in key or len(key) == 1:
            return make(None)
        same: T | None = self._before.get(key)
        found = same if keep and same is not None else make(same)
        self._opened[key] = found
        return found

    def _check_counts(self, folder: Path, rows: int) -> None:
        """Files of one build agree in number; this catches a manifest that was sealed over the wrong files."""
        every = self.segments[-1].stop
        _check_count(folder / DOCUMENTS, self._documents.count, every)
        _check_count(folder / "shards", sum(shard.count for shard in self.shards), rows if self.part.of else every)


def _check_count(path: Path, found: int, rows: int) -> None:
    if found != rows:
        raise VerificationError(f"{path} holds {found} documents, not {rows}; build the index again")


def projection_of(folder: Path, manifest: JsonObject) -> pca.Projection | None:
    """The one transform of a version, which every vector of it goes through; None where there is none."""
    facts = manifest["transform"]
    return pca.load(folder / TRANSFORM, normalize=facts["normalize"]) if facts else None
