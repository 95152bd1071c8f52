"""FAISS shards: train, fill, write, read back safely, search. The one file that knows FAISS's index classes.

Reading is guarded: the caller has verified the checksum; here the type must be one that we build, and FAISS may not
allocate more than the file can hold. Knows no manifest, no documents, no Ray.

Shapes: N vectors, Q queries, K results a query, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from rayvec.errors import VerificationError
from rayvec.indexing.ranking import NO_SCORE, Ranking, Rows, best
from rayvec.indexing.spec import Spec
from rayvec.indexing.vectors import Vectors

#: FAISS without its own annotations, which know a part of it only.
faiss: Any = _faiss

#: The first four bytes of the kinds of file that we build; nothing else is handed to FAISS.
READABLE = {b"IxFI": "Flat", b"IxSQ": "SQ", b"IwFl": "IVF,Flat", b"IwSq": "IVF,SQ", b"IHNf": "HNSW", b"IHNs": "HNSW,SQ"}
#: efConstruction of HNSW graphs: FAISS's own 40 is low for thousands of dimensions; 100 costs twice the build.
EF_CONSTRUCTION = 100
QUERIES_AT_ONCE = 4096


def use_threads(threads: int) -> None:
    """How many OpenMP threads FAISS takes for calls from this thread; each thread has a setting of its own."""
    faiss.omp_set_num_threads(max(1, threads))


def train(spec: Spec, dim: int, sample_ND: Vectors, seed: int) -> Any:
    """An empty index, trained if its kind asks for it, as bytes that `fill` starts from."""
    index = faiss.index_factory(dim, spec.factory, faiss.METRIC_INNER_PRODUCT)
    if spec.kind == "ivf":
        # The number of samples was chosen by spec.samples; FAISS would only print a warning about it.
        index.cp.seed, index.cp.min_points_per_centroid = seed, 1
        index.cp.max_points_per_centroid = max(1, len(sample_ND) // spec.centroids + 1)
    if spec.kind == "hnsw":
        index.hnsw.efConstruction = EF_CONSTRUCTION
    if not index.is_trained:
        index.train(np.ascontiguousarray(sample_ND))
    return faiss.serialize_index(index)


def fill(trained: Any, batches: Iterable[Vectors], path: Path) -> int:
    """Add the batches to a copy of the trained index and write it. Returns how many vectors it holds."""
    index = faiss.deserialize_index(np.array(trained))
    for batch in batches:
        index.add(np.ascontiguousarray(batch))
    faiss.write_index(index, str(path))
    return int(index.ntotal)


@dataclass(frozen=True)
class Effort:
    """How hard to look: lists probed of an IVF, width of the search in an HNSW graph; nothing for exact kinds."""

    nprobe: int | None = None
    ef_search: int | None = None


class Shard:
    """One FAISS index over the rows [start, start + count) of the whole."""

    def __init__(self, index: Any, start: int) -> None:
        self._index = index
        self.start = start
        self._selection: tuple[Rows, Any] | None = None

    @classmethod
    def read(cls, path: Path, *, start: int, rows: int, dim: int) -> Shard:
        """Map a verified file into memory. Raises VerificationError when it is not of our making or not this shard."""
        with path.open("rb") as stream:
            kind = stream.read(4)
        if kind not in READABLE:
            raise VerificationError(f"{path} is not a FAISS index of a kind that rayvec builds; build the index again")
        faiss.set_deserialization_vector_byte_limit(2 * path.stat().st_size + 4096)
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise VerificationError(f"{path} cannot be read by FAISS ({_first_line(error)}); build it again") from None
        if (index.ntotal, index.d, index.metric_type) != (rows, dim, faiss.METRIC_INNER_PRODUCT):
            raise VerificationError(
                f"{path} holds {index.ntotal} vectors of {index.d} dimensions where its manifest says {rows} of {dim}"
            )
        return cls(index, start)

    @property
    def count(self) -> int:
        """Number of vectors."""
        return int(self._index.ntotal)

    @property
    def most_effort(self) -> int:
        """The effort at which nothing is left out: every list, or as wide as there are vectors; 0 for exact kinds."""
        return int(getattr(self._index, "nlist", 0)) or (self.count if hasattr(self._index, "hnsw") else 0)

    def effort(self, value: int) -> Effort:
        """The effort of that size for this kind of index."""
        if hasattr(self._index, "nlist"):
            return Effort(nprobe=value)
        return Effort(ef_search=value) if hasattr(self._index, "hnsw") else Effort()

    def search(self, queries_QD: Vectors, k: int, effort: Effort, dropped: Rows | None = None) -> Ranking:
        """The min(k, live) nearest of this shard; where probing finds fewer it looks everywhere: no place is empty.

        dropped: rows of this shard, counted from its own first, that are not to be found; FAISS passes them over.
        """
        k = min(k, self.live(dropped))
        if not k:
            return _nothing(len(queries_QD))
        scores, rows = self._index.search(queries_QD, k, params=self._parameters(effort, dropped))
        short = (rows < 0).any(axis=1)
        if short.any():
            scores[short], rows[short] = self._everywhere(queries_QD[short], k, dropped)
        return Ranking(rows + self.start, scores)

    def live(self, dropped: Rows | None) -> int:
        """Number of vectors that may be found."""
        return self.count - (0 if dropped is None else len(dropped))

    def exhaustive(self, queries_QD: Vectors, k: int, dropped: Rows | None = None) -> Ranking:
        """The min(k, live) nearest by comparing each query with every vector as it is stored."""
        k = min(k, self.live(dropped))
        if not k:
            return _nothing(len(queries_QD))
        scores, rows = self._everywhere(queries_QD, k, dropped)
        return Ranking(rows.astype(np.int64) + self.start, scores)

    def stored(self, places_N: Rows) -> tuple[Rows, Vectors]:
        """Some vectors as they are stored [N, D], and their rows: places count from 0, in the order of the file."""
        if not hasattr(self._index, "nlist"):
            vectors = [self._index.reconstruct(int(place)) for place in places_N]
            return places_N + self.start, np.stack(vectors)
        lists = self._index.invlists
        ends = np.cumsum([lists.list_size(number) for number in range(self._index.nlist)])
        numbers = np.searchsorted(ends, places_N, side="right")
        inside = places_N - np.concatenate([[0], ends])[numbers]
        vectors_ND = np.empty((len(places_N), self._index.d), np.float32)
        rows = np.empty(len(places_N), np.int64)
        for i, (number, place) in enumerate(zip(numbers.tolist(), inside.tolist(), strict=True)):
            self._index.reconstruct_from_offset(number, place, faiss.swig_ptr(vectors_ND[i]))
            rows[i] = lists.get_single_id(number, place) + self.start
        return rows, vectors_ND

    def _everywhere(self, queries_QD: Vectors, k: int, dropped: Rows | None) -> tuple[Any, Any]:
        if hasattr(self._index, "hnsw"):
            exact = faiss.SearchParameters(**self._selected(dropped))
            return faiss.downcast_index(self._index.storage).search(queries_QD, k, params=exact)
        return self._index.search(queries_QD, k, params=self._parameters(Effort(nprobe=self.most_effort), dropped))

    def _parameters(self, effort: Effort, dropped: Rows | None) -> Any:
        """Given with the call and never set on the index: threads may search it with different efforts at once."""
        selected = self._selected(dropped)
        if hasattr(self._index, "nlist"):
            return faiss.SearchParametersIVF(
                nprobe=effort.nprobe or 1, quantizer_params=self._quantizer_parameters(effort), **selected
            )
        if hasattr(self._index, "hnsw"):
            return faiss.SearchParametersHNSW(efSearch=effort.ef_search or 16, **selected)
        return faiss.SearchParameters(**selected) if selected else None

    def _selected(self, dropped: Rows | None) -> dict[str, Any]:
        """The rows that FAISS may find, a bit each; kept, since an index asks with the same rows again."""
        if dropped is None or not len(dropped):
            return {}
        kept = self._selection
        if kept is None or kept[0] is not dropped:
            live = np.ones(self.count, np.bool_)
            live[dropped] = False
            kept = self._selection = (dropped, faiss.IDSelectorBitmap(np.packbits(live, bitorder="little")))
        return {"sel": kept[1]}

    def _quantizer_parameters(self, effort: Effort) -> Any:
        """A graph over the centroids must be searched at least as wide as the lists that are to be probed."""
        quantizer = faiss.downcast_index(self._index.quantizer)
        if not hasattr(quantizer, "hnsw"):
            return None
        return faiss.SearchParametersHNSW(efSearch=max(2 * (effort.nprobe or 1), 64))


def search(
    shards: list[Shard],
    queries_QD: Vectors,
    k: int,
    effort: Effort,
    dropped: Sequence[Rows | None] | None = None,
) -> Ranking:
    """The k nearest over all shards, best first, ties by row. At most QUERIES_AT_ONCE queries are in work at a time.

    dropped: for each shard, those of its rows that are not to be found (see Shard.search).
    """
    pairs = list(zip(shards, dropped or [None] * len(shards), strict=True))
    pieces = [
        merge([shard.search(queries_QD[start : start + QUERIES_AT_ONCE], k, effort, gone) for shard, gone in pairs], k)
        for start in range(0, len(queries_QD), QUERIES_AT_ONCE)
    ]
    if not pieces:
        return Ranking(np.empty((0, k), np.int64), np.full((0, k), NO_SCORE))
    return Ranking(np.concatenate([p.rows for p in pieces]), np.concatenate([p.scores for p in pieces]))


def merge(rankings: Sequence[Ranking], k: int) -> Ranking:
    """The k best of several rankings of the same queries, of different rows."""
    rows = np.concatenate([ranking.rows for ranking in rankings], axis=1)
    scores = np.concatenate([ranking.scores for ranking in rankings], axis=1)
    return best(rows, scores, k)


def exact(batches: Iterable[tuple[int, Vectors]], queries_QD: Vectors, k: int) -> Ranking:
    """The true k nearest: every vector compared with every query. `batches` give (first row, vectors [N, D])."""
    ranking = _nothing(len(queries_QD))
    for start, vectors in batches:
        scores, rows = faiss.knn(queries_QD, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        ranking = merge([ranking, Ranking(rows.astype(np.int64) + start, scores)], k)
    return ranking


def _nothing(queries: int) -> Ranking:
    return Ranking(np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
