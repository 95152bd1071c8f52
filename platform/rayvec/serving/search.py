"""From vectors and words to hits: rank, drop what is too low or repeated, rerank, and put the documents to their rows.

Knows an open index and what a request asked of it. Knows no encoder, no route, no Ray.

Shapes: Q queries, D dimensions, K hits a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rayvec.errors import UserError
from rayvec.indexing.filters import Filter
from rayvec.schema import ID, PARENT_ID, TEXT, TITLE
from rayvec.serving.problems import unavailable
from rayvec.serving.rerank import Reranker
from rayvec.serving.schemas import MAX_K, MAX_QUERIES, MAX_VALUES, Fusion, Hit, Include, Mode, Signal

if TYPE_CHECKING:
    from rayvec.indexing.maps import Map
    from rayvec.indexing.ranking import Ranking
    from rayvec.indexing.searcher import Index
    from rayvec.indexing.selection import Selection
    from rayvec.serving.config import SearchDefaults
    from rayvec.serving.schemas import SearchRequest

#: A hybrid search looks this much deeper in each ranking than it answers: a good hit may stand low in one of them.
POOL_FACTOR = 4
#: And so deep, so that its order and scores stay when somewhat more hits are asked for: both follow from all it sees.
POOLS = (200, 1_000, POOL_FACTOR * MAX_K)
#: Where hits are dropped from what was found, the search is made again so much deeper, until there are enough.
DEEPER = 4
#: Rows that a ranking is asked for at most, which is what a hybrid search for MAX_K takes; FAISS makes room for all.
DEEPEST = POOLS[-1]
#: Rows of all queries together that a search for more hits goes through: as many as the largest request answers.
ROWS_AT_MOST = MAX_QUERIES * MAX_K
#: Pairs of a query and a document that one request may have reranked: a cross-encoder on a CPU scores some 50 a second.
MAX_PAIRS = 1_000
#: Of coordinates on a map: finer than a screen's dots.
MAP_DECIMALS = 4

#: Fields of a request that are passed on as they were asked.
_AS_ASKED = ("k", "filter", "min_score", "unique_by", "rerank", "min_index_version", "allow_partial")


@dataclass(frozen=True)
class Options:
    """What a request asks beside its queries; see `schemas.SearchRequest`."""

    k: int = 10
    #: None: the best that the index can.
    mode: Mode | None = None
    #: What the queries are: texts; vectors alone; ids of documents.
    by: Literal["query", "vectors", "like"] = "query"
    include: tuple[Include, ...] = ("text", "payload")
    filter: Filter | None = None
    fusion: Fusion = "weighted"
    dense_weight: float | None = None
    min_score: float | None = None
    unique_by: str | None = None
    rerank: int | None = None
    min_index_version: str | None = None
    allow_partial: bool = True

    @classmethod
    def asked(cls, request: SearchRequest, defaults: SearchDefaults) -> Options:
        """All of a request but the queries and their instruction; what it does not say is as the service has it."""
        weight = request.dense_weight
        if weight is None and request.fusion is None:  # a weight is of one way of fusing
            weight = defaults.dense_weight
        return cls(
            by="query" if request.query is not None else "vectors" if request.vectors is not None else "like",
            mode="dense" if request.query is None else request.mode or defaults.mode,
            fusion=request.fusion or defaults.fusion,
            dense_weight=weight,
            include=tuple(request.include),
            **{name: getattr(request, name) for name in _AS_ASKED},
        )

    @property
    def encodes(self) -> bool:
        """Whether the queries are for the encoder."""
        return self.by == "query" and self.mode != "lexical"


@dataclass(frozen=True)
class Candidate:
    """A row that was found, its score, and where the searches behind the ranking put it."""

    row: int
    score: float
    signals: dict[str, Signal]


def index_modes(index: Index) -> list[Mode]:
    """The searches that an index can answer, the best one first."""
    return ["hybrid", "dense", "lexical"] if index.has_lexical else ["dense"]


def told_of_windows(index: Index) -> str:
    """The end of a message about an id that is not there, where documents are there as windows of theirs."""
    return "; its documents are windows, with ids such as 'ID#0'" if PARENT_ID in index.columns else ""


def search_index(
    index: Index,
    queries: list[str],
    vectors_QD: np.ndarray | None,
    options: Options,
    reranker: Reranker | None = None,
    map_: Map | None = None,
) -> list[list[Hit]]:
    """The hits of each query, best first: k of them, or as many as there are.

    With options.unique_by fewer than k are answered too where the best DEEPEST rows (of many queries: fewer, so that
    all of them look through ROWS_AT_MOST) hold no more that differ.

    options.mode is one that the index has.

    map_: of this very version, to put hits on where that is asked for; without one they have no place.

    Raises UserError for a column that the documents do not have, a query that cannot be searched, or more to rerank
    than MAX_PAIRS.
    """
    if (pairs := len(queries) * (options.rerank or 0)) > MAX_PAIRS:
        raise UserError(
            f"rerank: {len(queries)} queries with {options.rerank} documents each are {pairs} pairs, and {MAX_PAIRS} "
            "are allowed; ask for fewer of either"
        )
    if options.unique_by is not None and options.unique_by not in index.columns:
        raise UserError(f"unique_by: no column {options.unique_by!r}; the documents have {', '.join(index.columns)}")
    if options.by == "like":
        for id_, row in zip(queries, index.rows_of(queries).tolist(), strict=True):
            if row < 0:
                raise UserError(f"like: there is no document {id_!r}{told_of_windows(index)}")
    if (
        "vector" in options.include
        and (values := len(queries) * options.k * int(index.manifest["dim_index"])) > MAX_VALUES
    ):
        raise UserError(f"include: {values} numbers of vectors, and {MAX_VALUES} are allowed; ask for fewer hits")
    selection = None if options.filter is None else index.select(options.filter)
    count = index.count if selection is None else selection.count
    wanted = min(max(options.k, options.rerank or 0), count)
    answers: list[list[Candidate]] = [[] for _ in queries]
    if not wanted:
        return [[] for _ in queries]
    waiting, depth = list(range(len(queries))), wanted
    deepest = max(wanted, min(count, DEEPEST, ROWS_AT_MOST // len(queries)))
    while waiting:
        some = [queries[query] for query in waiting]
        vectors = None if vectors_QD is None else vectors_QD[waiting]
        found = _found(index, some, vectors, depth, wanted, options, selection)
        for query, (hits, exhausted) in zip(list(waiting), found, strict=True):
            if len(hits) >= wanted or exhausted or depth >= deepest:
                answers[query] = hits
                waiting.remove(query)
        depth = min(depth * DEEPER, deepest)
    if options.rerank:
        answers = [
            _reranked(index, query, hits, options.rerank, reranker)
            for query, hits in zip(queries, answers, strict=True)
        ]
    return [_with_documents(index, hits[: options.k], options.include, map_) for hits in answers]


def _found(
    index: Index,
    queries: list[str],
    vectors_QD: np.ndarray | None,
    depth: int,
    wanted: int,
    options: Options,
    selection: Selection | None,
) -> Iterator[tuple[list[Candidate], bool]]:
    """For each query the first `wanted` of what is left of its best `depth`, and whether nothing is below these."""
    ranking, parts = _rank(index, queries, vectors_QD, depth, options, selection)
    for query in range(len(queries)):
        pairs = ranking.hits(query)
        good = [pair for pair in pairs if options.min_score is None or pair[1] >= options.min_score]
        kept = _unique(index, good, options.unique_by)[:wanted]
        signals = {name: _places(part, query, [row for row, _ in kept]) for name, part in parts.items()}
        hits = [_candidate(row, score, signals) for row, score in kept]
        yield hits, len(good) < len(pairs) or len(pairs) < depth


def _unique(index: Index, pairs: list[tuple[int, float]], column: str | None) -> list[tuple[int, float]]:
    """Of those that have the same value in a column the best; a document without a value is like no other."""
    if column is None or not pairs:
        return pairs
    seen: set[str] = set()
    kept = []
    for pair, document in zip(pairs, index.documents([row for row, _ in pairs], [column]), strict=True):
        value = document[column]
        if value is None or repr(value) not in seen:
            seen.add(repr(value))
            kept.append(pair)
    return kept


def _rank(
    index: Index,
    queries: list[str],
    vectors_QD: np.ndarray | None,
    k: int,
    options: Options,
    selection: Selection | None,
) -> tuple[Ranking, dict[str, Ranking]]:
    """The ranking, and for a hybrid one the rankings it was made of."""
    from rayvec.indexing.hybrid import DENSE_WEIGHT, hybrid, reciprocal_rank_fusion

    if options.mode == "lexical":
        return index.lexical(queries, k, selection), {}
    if options.by == "like":
        return index.like(index.rows_of(queries), k, selection), {}
    assert vectors_QD is not None, "only a lexical search goes without vectors"
    if options.mode == "dense":
        return index.dense(vectors_QD, k, selection), {}
    pool = min(next((pool for pool in POOLS if pool >= POOL_FACTOR * k), DEEPEST), DEEPEST, index.count)
    lexical, dense = index.lexical(queries, pool, selection), index.dense(vectors_QD, pool, selection)
    parts = {"dense": dense, "lexical": lexical}
    if options.fusion == "rrf":
        weight = 1.0 if options.dense_weight is None else options.dense_weight
        return reciprocal_rank_fusion([lexical, dense], k, weights=[1.0, weight]), parts
    weight = DENSE_WEIGHT if options.dense_weight is None else options.dense_weight
    return hybrid(lexical, dense, k, weight), parts


def _places(ranking: Ranking, query: int, rows: Sequence[int]) -> dict[int, Signal]:
    """Where a ranking has these rows; those that it does not have are not told."""
    places = {row: (rank, score) for rank, (row, score) in enumerate(ranking.hits(query), 1)}
    return {row: Signal(rank=rank, score=score) for row in rows if row in places for rank, score in [places[row]]}


def _candidate(row: int, score: float, signals: dict[str, dict[int, Signal]]) -> Candidate:
    if not np.isfinite(score):
        raise unavailable("the index gave a score that is not finite; build it again", code="index_not_finite")
    return Candidate(row, score, {name: places[row] for name, places in signals.items() if row in places})


def scores_of(reranker: Reranker | None, query: str, texts: Sequence[str]) -> list[float]:
    """One score a text. Raises UserError where there is no reranker, Problem 503 where it fails to score them all."""
    if reranker is None:
        raise UserError("rerank: this service has no reranker; leave it out, or serve with --set reranker=…")
    scores = [float(score) for score in reranker(query, texts)] if texts else []
    if len(scores) != len(texts) or not all(np.isfinite(scores)):
        raise unavailable("the reranker did not give a finite score for each text", code="reranker_failed")
    return scores


def _reranked(
    index: Index, query: str, hits: list[Candidate], depth: int, reranker: Reranker | None
) -> list[Candidate]:
    """The first `depth` hits in the order of the reranker's scores, before the others; their own become a signal."""
    best, rest = hits[:depth], hits[depth:]
    documents = index.documents([hit.row for hit in best], [name for name in (TITLE, TEXT) if name in index.columns])
    texts = ["\n".join(str(value) for value in document.values() if value) for document in documents]
    scores = scores_of(reranker, query, texts)
    order = sorted(range(len(best)), key=lambda place: (-scores[place], place))
    first = [
        Candidate(
            best[place].row,
            scores[place],
            {**best[place].signals, "search": Signal(rank=place + 1, score=best[place].score)},
        )
        for place in order
    ]
    return first + rest


def _with_documents(index: Index, found: list[Candidate], include: Sequence[Include], map_: Map | None) -> list[Hit]:
    """Hits: ranks and scores with the documents: id, title, and of text and payload what was asked for."""
    wanted = [name for name in index.columns if name in (ID, TITLE) or _part_of(name) in include]
    rows = [one.row for one in found]
    documents = index.documents(rows, wanted) if found else []
    nothing = [None] * len(found)
    on_map = map_ is not None and "map" in include
    vectors_KD = index.vectors(rows) if found and (on_map or "vector" in include) else None
    vectors = vectors_KD.tolist() if vectors_KD is not None and "vector" in include else nothing
    points = rounded(map_.place(vectors_KD)) if vectors_KD is not None and map_ is not None and on_map else nothing
    return [
        Hit(rank=rank, score=one.score, signals=one.signals, vector=vector, map=point, **shown(document, include))
        for rank, (one, document, vector, point) in enumerate(zip(found, documents, vectors, points, strict=True), 1)
    ]


def rounded(points_N2: np.ndarray) -> list[list[float]]:
    """Points of a map as short numbers: coordinates lie between -2 and 2."""
    return np.round(points_N2.astype(np.float64), MAP_DECIMALS).tolist()


def shown(document: dict[str, Any], include: Sequence[Include]) -> dict[str, Any]:
    """A document's row as the fields of an answer; text and payload are None where they were not read or asked for."""
    payload = {name: value for name, value in document.items() if _part_of(name) == "payload"}
    return {
        "id": document[ID],
        "title": document.get(TITLE),
        "text": document.get(TEXT),
        "payload": payload if "payload" in include else None,
    }


def _part_of(column: str) -> str:
    return column if column in (ID, TITLE, TEXT) else "payload"
