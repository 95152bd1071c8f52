"""FAISS shards: train, fill, merge, write, read back safely, search.

Reading is guarded: the caller has verified the checksum; here every layer must be one that we build, and FAISS may not
allocate more than the file can hold. Knows no manifest, no documents, no Ray.

Shapes: N vectors, Q queries, K results a query, D dimensions.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayvec import storage
from rayvec.errors import VerificationError
from rayvec.failures import storage_errors
from rayvec.indexing import gpu, layers
from rayvec.indexing.effort import Effort, Selector, keep_all_but, parameters, selected
from rayvec.indexing.forms import KMEANS_ROUNDS, SAMPLES_A_CENTROID
from rayvec.indexing.layers import READABLE, faiss, inner, refinement
from rayvec.indexing.ranking import NO_SCORE, Ranking, Rows, best, nothing
from rayvec.indexing.spec import Spec
from rayvec.indexing.vectors import Vectors

__all__ = [
    "READABLE", "Effort", "Shard", "exact", "fill", "merge", "merge_rankings", "search", "train", "use_threads",
]  # fmt: skip

#: efConstruction of HNSW graphs: FAISS's own 40 is low for thousands of dimensions; 100 costs twice the build.
EF_CONSTRUCTION = 100
#: How wide a graph over centroids is searched for the list of a vector that is added.
EF_ASSIGN = 64
QUERIES_AT_ONCE = 4096
#: OpenMP threads that this process was started with: OMP_NUM_THREADS (Ray sets it for its workers), or all cores.
PROCESS_THREADS: int = faiss.omp_get_max_threads()
#: FAISS counts a table for product codes (lists × codewords) that it never makes for inner products: 256 times the
#: centroids at most.
MAY_HOLD_PQ = (b"IwPQ", b"IwPf", b"IxPT", b"IxRF")
_READING = threading.Lock()


def use_threads(threads: int) -> None:
    """How many OpenMP threads FAISS takes for calls from this thread; each thread has a setting of its own."""
    faiss.omp_set_num_threads(max(1, threads))


def train(spec: Spec, dim: int, sample_ND: Vectors, seed: int) -> Any:
    """An empty index, trained if its kind asks for it, as bytes that `fill` starts from.

    The same bytes whatever the number of threads: rotations and the centroids' graph are made by one, since products
    round by their threads, and FAISS's graphs depend on the order in which threads come.
    """
    index = faiss.index_factory(dim, re.sub(r"_HNSW\d+,", ",", spec.factory), faiss.METRIC_INNER_PRODUCT)
    kept = _prepare(index, spec, len(sample_ND), seed)
    if spec.needs_training:
        layers.train(index, np.ascontiguousarray(sample_ND))
    if spec.kind == "ivf" and spec.links:
        kept.append(_graph_of_centroids(inner(index), spec.links))
    trained = faiss.serialize_index(index)
    del kept
    return trained


def _prepare(index: Any, spec: Spec, samples: int, seed: int) -> list[Any]:
    """Settings of the training. Returns what must live as long as it, since FAISS holds bare pointers."""
    found = inner(index)
    kept: list[Any] = []
    if spec.kind == "ivf":
        # The number of samples was chosen by spec.samples; FAISS would only print a warning about it.
        found.cp.seed, found.cp.niter, found.cp.min_points_per_centroid = seed, KMEANS_ROUNDS, 1
        found.cp.max_points_per_centroid = max(1, min(samples // spec.centroids + 1, SAMPLES_A_CENTROID))
        kept.append(gpu.cluster_on_gpus(found))
    if spec.kind == "hnsw":
        found.hnsw.efConstruction = EF_CONSTRUCTION
    if spec.subquantizers:
        _quiet(found.pq, seed)
        if spec.bits == 8:
            # It orders codewords for a filter by Hamming distance that we never use: over a second a sub-quantizer.
            found.do_polysemous_training = False
    if spec.rotation == "OPQ":
        rotation: Any = layers.rotation(index)
        kept.append(faiss.ProductQuantizer(rotation.d_out, spec.subquantizers, spec.bits))
        _quiet(kept[-1], seed)
        rotation.pq = kept[-1]
    return kept


def _quiet(quantizer: Any, seed: int) -> None:
    quantizer.cp.min_points_per_centroid, quantizer.cp.seed = 1, seed


def _graph_of_centroids(lists: Any, links: int) -> Any:
    """Put a graph in the place of the exact index over the centroids, for both adding and searching."""
    graph = faiss.IndexHNSWFlat(lists.d, links, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = EF_CONSTRUCTION, EF_ASSIGN
    with layers.one_thread():
        graph.add(faiss.downcast_index(lists.quantizer).reconstruct_n(0, lists.nlist))
    lists.own_fields, lists.quantizer = False, graph
    return graph


def fill(trained: Any, batches: Iterable[Vectors], path: Path) -> int:
    """Add the batches to a copy of the trained index and write it. Returns how many vectors it holds.

    Holds that index and one batch. Vectors find their lists on the GPUs, where FAISS has any. Raises StorageError.
    """
    index = faiss.deserialize_index(np.array(trained))
    nearest = gpu.assigner(index)
    put = _add if nearest is None else partial(gpu.add, nearest=nearest)
    for batch in batches:
        layers.add(index, np.ascontiguousarray(batch), put)
    _write(index, path)
    return int(index.ntotal)


def _write(index: Any, path: Path) -> None:
    """Through a stream of ours: FAISS's own tells no cause of what fails, and nothing of what fails as it is closed."""
    with storage_errors(path), path.open("wb") as stream:
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write, storage.CHUNK))


def _add(index: Any, vectors_ND: Vectors) -> None:
    index.add(vectors_ND)


def merge(pieces: Sequence[Path], path: Path) -> int:
    """Write the pieces of one shard, in their order, as one file, and remove them. Returns how many vectors it holds.

    Holds the shard and one piece. Not for graphs, which FAISS cannot merge. Raises StorageError.
    """
    whole = faiss.read_index(str(pieces[0]))
    for piece in pieces[1:]:
        found = faiss.read_index(str(piece))  # by a name: a cast does not keep what it is a cast of
        layers.merge(whole, found)
    _write(whole, path)
    for piece in pieces:
        piece.unlink()
    return int(whole.ntotal)


@contextlib.contextmanager
def _bounded(path: Path, kind: bytes) -> Iterator[None]:
    """Let FAISS allocate no more than this file can hold. The bound is the process's, so one file is read at a time."""
    size = path.stat().st_size
    with _READING:
        usual = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit((256 if kind in MAY_HOLD_PQ else 2) * size + 4096)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(usual)


class Shard:
    """One FAISS index over the rows [start, start + count) of the whole."""

    def __init__(self, index: Any, start: int) -> None:
        self._index = index
        self._inner = inner(index)
        self._refinement = refinement(index)
        self._kept: tuple[Rows, Selector] | None = None
        self._places: Rows | None = None
        self._placing = threading.Lock()
        self.start = start

    @classmethod
    def read(cls, path: Path, *, start: int, rows: int, dim: int) -> Shard:
        """Map a verified file into memory. Raises VerificationError when it is not of our making or not this shard.

        A file that was not loaded before belongs to `trial` first: FAISS trusts what it reads, and may end the process.
        """
        with path.open("rb") as stream:
            kind = stream.read(4)
        if kind not in READABLE:
            raise VerificationError(f"{path} is not a FAISS index of a kind that rayvec builds; build the index again")
        try:
            with _bounded(path, kind):
                index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, MemoryError) as error:
            raise VerificationError(f"{path} cannot be read by FAISS ({_first_line(error)}); build it again") from None
        stranger = layers.foreign(index)
        if stranger is not None:
            raise VerificationError(
                f"{path} is not a FAISS index of a kind that rayvec builds (it holds {stranger}); build the index again"
            )
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
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._index.d)

    @property
    def most_effort(self) -> int:
        """The effort at which nothing is left out: every list, or as wide as there are vectors; 0 for exact kinds."""
        return int(getattr(self._inner, "nlist", 0)) or (self.count if hasattr(self._inner, "hnsw") else 0)

    @property
    def is_refined(self) -> bool:
        """Whether first answers are compared again with stored vectors."""
        return self._refinement is not None

    def effort(self, value: int, k_factor: int | None = None) -> Effort:
        """The effort of that size for this kind of index."""
        factor = k_factor if self.is_refined else None
        if hasattr(self._inner, "nlist"):
            return Effort(nprobe=value, k_factor=factor)
        return Effort(ef_search=value if hasattr(self._inner, "hnsw") else None, k_factor=factor)

    def search(self, queries_QD: Vectors, k: int, effort: Effort, dropped: Rows | None = None) -> Ranking:
        """The min(k, live) nearest of this shard; where probing finds fewer it looks everywhere: no place is empty.

        dropped: rows of this shard, counted from its own first, that are not to be found; FAISS passes them over.
        """
        k = min(k, self.live(dropped))
        if not k:
            return nothing(len(queries_QD))
        selector = self._selector(dropped)
        params = parameters(self._index, effort, self.count / k, selector)
        scores, rows = self._index.search(queries_QD, k, params=params)
        short = (rows < 0).any(axis=1)
        if short.any():
            scores[short], rows[short] = self._everywhere(queries_QD[short], k, selector)
        return Ranking(rows + self.start, scores)

    def live(self, dropped: Rows | None) -> int:
        """Number of vectors that may be found."""
        return self.count - (0 if dropped is None else len(dropped))

    def exhaustive(self, queries_QD: Vectors, k: int, dropped: Rows | None = None) -> Ranking:
        """The min(k, live) nearest by comparing each query with every vector as it is stored."""
        k = min(k, self.live(dropped))
        if not k:
            return nothing(len(queries_QD))
        scores, rows = self._everywhere(queries_QD, k, self._selector(dropped))
        return Ranking(rows.astype(np.int64) + self.start, scores)

    def stored(self, places_N: Rows) -> tuple[Rows, Vectors]:
        """Some vectors as they are stored [N, D], and their rows: places count from 0, in the order of the file."""
        if self._refinement is not None or not hasattr(self._inner, "nlist"):
            whole = self._refinement if self._refinement is not None else self._index
            vectors = [whole.reconstruct(int(place)) for place in places_N]
            return places_N + self.start, np.stack(vectors)
        lists = self._inner.invlists
        ends = np.cumsum([lists.list_size(number) for number in range(self._inner.nlist)])
        numbers = np.searchsorted(ends, places_N, side="right")
        inside = places_N - np.concatenate([[0], ends])[numbers]
        pairs = list(zip(numbers.tolist(), inside.tolist(), strict=True))
        rows = np.array([lists.get_single_id(*pair) for pair in pairs], np.int64) + self.start
        return rows, layers.unrotated(self._index, layers.of_lists(self._inner, pairs))

    def vectors(self, rows_N: Rows) -> Vectors:
        """The vectors of some rows, numbered as in the whole, as they are stored [N, D]. Several threads may ask."""
        wanted = rows_N - self.start
        if self._refinement is None and hasattr(self._inner, "nlist"):
            wanted = self._place_of_rows()[wanted]
        return self.stored(wanted)[1]

    def _place_of_rows(self) -> Rows:
        """Where in the lists each row is, 8 bytes a row; found when it is asked for first, and kept."""
        with self._placing:
            if self._places is None:
                lists = self._inner.invlists
                ids = [
                    faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
                    for number in range(self._inner.nlist)
                    if lists.list_size(number)
                ]
                places = np.empty(self.count, np.int64)
                places[np.concatenate([np.empty(0, np.int64), *ids])] = np.arange(self.count)
                self._places = places
            return self._places

    def _selector(self, dropped: Rows | None) -> Selector | None:
        """The rows that FAISS may find, a bit each; kept, since an index asks with the same rows again."""
        if dropped is None or not len(dropped):
            return None
        kept = self._kept
        if kept is None or kept[0] is not dropped:
            kept = self._kept = (dropped, keep_all_but(dropped, self.count))
        return kept[1]

    def _everywhere(self, queries_QD: Vectors, k: int, selector: Selector | None) -> tuple[Any, Any]:
        if self._refinement is not None:
            return self._refinement.search(queries_QD, k, params=selected(selector))
        if hasattr(self._inner, "hnsw"):
            vectors = faiss.downcast_index(self._inner.storage)
            return vectors.search(queries_QD, k, params=selected(selector))
        most = parameters(self._index, Effort(nprobe=self.most_effort), 1.0, selector)
        return self._index.search(queries_QD, k, params=most)


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
        merge_rankings(
            [shard.search(queries_QD[start : start + QUERIES_AT_ONCE], k, effort, gone) for shard, gone in pairs], k
        )
        for start in range(0, len(queries_QD), QUERIES_AT_ONCE)
    ]
    if not pieces:
        return Ranking(np.empty((0, k), np.int64), np.full((0, k), NO_SCORE))
    return Ranking(np.concatenate([p.rows for p in pieces]), np.concatenate([p.scores for p in pieces]))


def merge_rankings(rankings: Sequence[Ranking], k: int) -> Ranking:
    """The k best of several rankings of the same queries, of different rows."""
    rows = np.concatenate([ranking.rows for ranking in rankings], axis=1)
    scores = np.concatenate([ranking.scores for ranking in rankings], axis=1)
    return best(rows, scores, k)


def exact(batches: Iterable[tuple[int, Vectors]], queries_QD: Vectors, k: int) -> Ranking:
    """The true k nearest: every vector compared with every query. `batches` give (first row, vectors [N, D])."""
    ranking = nothing(len(queries_QD))
    for start, vectors in batches:
        scores, rows = faiss.knn(queries_QD, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        ranking = merge_rankings([ranking, Ranking(rows.astype(np.int64) + start, scores)], k)
    return ranking


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
