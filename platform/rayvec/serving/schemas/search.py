"""Searches: queries in, hits out; and the map that hits are put on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from rayvec.indexing.filters import Filter, check
from rayvec.serving.config import Fusion, Mode
from rayvec.serving.schemas.base import (
    MAX_K,
    MAX_QUERIES,
    MAX_RERANKED,
    Answer,
    DocumentId,
    Include,
    Instruction,
    Queries,
    Request,
    Text,
    Usage,
    Vector,
    Version,
)


class SearchRequest(Request):
    """One or many queries against the index: texts, vectors that this encoder made elsewhere, or documents by id."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "read a parquet file", "k": 3, "mode": "hybrid", "include": ["text"]}]
        }
    )

    query: Queries | None = Field(None, description="one query, or a list of up to 64")
    vectors: Annotated[list[Vector], Field(min_length=1, max_length=MAX_QUERIES)] | None = Field(
        None, description="instead of `query`: vectors by this very encoder; a dense search"
    )
    like: Annotated[list[DocumentId], Field(min_length=1, max_length=MAX_QUERIES)] | None = Field(
        None, description="instead of `query`: ids of documents, for the ones most like each; a dense search"
    )
    k: int = Field(10, ge=1, le=MAX_K, description="hits per query")
    mode: Mode | None = Field(
        None,
        description="dense: by meaning; lexical: by words (BM25); hybrid: both, fused; by default the service's, or "
        "hybrid where the index can",
    )
    instruction: Instruction | None = Field(
        None,
        description="what the query is for; read before it. By default the encoder's own for queries, which "
        "GET /v1/models names; an empty one for none",
    )
    include: list[Include] = Field(
        default=["text", "payload"],
        max_length=4,
        description=(
            "what each hit carries; vector: the document's as the index holds it, at length 1; map: its place on the "
            "map that GET /v1/map gives of the same index_version, null while that is not drawn yet"
        ),
    )
    filter: Annotated[Filter, AfterValidator(check)] | None = Field(
        None,
        description="only documents that pass; conditions (eq, ne, gt, gte, lt, lte, in, exists) on any column but "
        "text, and, or, not",
        examples=[
            {"and": [{"field": "year", "gte": 2020}, {"not": {"field": "lang", "in": ["de", "fr"]}}]},
            {"field": "lang", "exists": False},
        ],
    )
    fusion: Fusion | None = Field(
        None,
        description="of a hybrid search: by scores brought to [0, 1] (weighted), or by reciprocal ranks; by default "
        "the service's, or weighted",
    )
    dense_weight: float | None = Field(
        None, ge=0, le=100, description="what the dense ranking counts in a hybrid one, where the lexical one counts 1"
    )
    min_score: float | None = Field(None, description="leave out hits below this score, in the terms of the mode asked")
    unique_by: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="of hits with the same value in this column, only the best; the first 4000 rows are looked through "
        "(of 64 queries 1000 each), so fewer than k may come back",
    )
    rerank: int | None = Field(
        None,
        ge=1,
        le=MAX_RERANKED,
        description="put the first so many hits in the order of the service's reranker; of all queries 1000 at most",
    )

    min_index_version: Version | None = Field(
        None, description="answer from this version or a later one: what a write answered, so that it is seen here"
    )
    allow_partial: bool = Field(
        True,
        description="where the vectors lie in several processes and one does not answer: search the others and say so "
        "in `coverage` and `missing_parts`; if false, answer 503",
    )

    @field_validator("vectors", mode="before")
    @classmethod
    def _is_a_list_of_vectors(cls, vectors: Any) -> Any:
        if isinstance(vectors, list) and vectors and isinstance(vectors[0], int | float):
            raise ValueError("a list of vectors, and not one vector; write [[…]]")
        return vectors

    @model_validator(mode="after")
    def _one_kind_of_query(self) -> Self:
        given = [name for name in ("query", "vectors", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of query, vectors and like; this request has {' and '.join(given) or 'none'}")
        if self.vectors is not None and len({len(vector) for vector in self.vectors}) > 1:
            raise ValueError("vectors are not of one length")
        if self.query is None:
            if self.mode not in (None, "dense"):
                raise ValueError(f"{given[0]} is for a dense search; leave out mode")
            if self.instruction or self.rerank:
                raise ValueError(f"instruction and rerank need the words of a query, and {given[0]} has none")
        return self

    @property
    def queries(self) -> list[str]:
        """The queries, or the ids that stand for them, as a list; an empty text for a vector."""
        if self.vectors is not None:
            return [""] * len(self.vectors)
        if self.query is None:
            return self.like or []
        # What stands around a query is of whoever typed or pasted it; to many encoders it would be another text.
        return [query.strip() for query in ([self.query] if isinstance(self.query, str) else self.query)]


class Signal(Answer):
    """Where one of the searches behind a ranking put a hit: dense or lexical, or the search before a reranking."""

    rank: int
    score: float


class Hit(Answer):
    """A document found. `signals` tells, by search, where it was found, and is empty where only one was asked."""

    rank: int
    id: str
    score: float
    title: str | None = None
    text: str | None = None
    payload: dict[str, Any] | None = None
    vector: list[float] | None = None
    map: list[float] | None = Field(None, description="x and y")
    signals: dict[str, Signal] = Field({})


class SearchResult(Answer):
    """The hits of one query, best first. `truncated` says that the encoder saw only the query's beginning."""

    hits: list[Hit]
    truncated: bool = False


class Timings(Answer):
    """Milliseconds: the encoder's part, the index's part, and all of the request."""

    encode_ms: float
    search_ms: float
    total_ms: float


class SearchAnswer(Answer):
    """One result for each query, in the order asked, all from the one index version named."""

    object: Literal["search"] = "search"
    model: str
    mode: Mode
    index_version: str
    results: list[SearchResult]
    usage: Usage
    timings: Timings
    coverage: float = Field(1.0, description="share of the vectors that were searched; below 1 where parts are missing")
    missing_parts: list[int] = Field([], description="parts of the vectors that did not answer")


_IGNORED = "accepted for such clients, and ignored"


class RerankRequest(Request):
    """Texts to be put in order for a query, as Cohere's and Jina's clients ask for it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "sort a list", "documents": ["a", "b"]}]})

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=MAX_RERANKED)]
    top_n: int | None = Field(None, ge=1, le=MAX_RERANKED, description="how many are answered; all by default")
    return_documents: bool = Field(False, description="whether the texts come back too")
    model: str | None = Field(None, max_length=256, description=_IGNORED)
    max_tokens_per_doc: int | None = Field(None, description=_IGNORED)
    max_chunks_per_doc: int | None = Field(None, description=_IGNORED)
    truncation: bool | None = Field(None, description=_IGNORED)
    rank_fields: list[Text] | None = Field(None, max_length=MAX_RERANKED, description=_IGNORED)
    priority: int | None = Field(None, description=_IGNORED)

    @field_validator("documents", mode="before")
    @classmethod
    def _texts(cls, documents: Any) -> Any:
        """Of objects, as the older clients send them, the text."""
        if not isinstance(documents, list):
            return documents
        return [one["text"] if isinstance(one, dict) and "text" in one else one for one in documents]


class RerankedText(Answer):
    """A text that was sent."""

    text: str


class Reranked(Answer):
    """A text by its place among those that were sent, and the reranker's score of it."""

    index: int
    relevance_score: float
    document: RerankedText | None = None


class RerankAnswer(Answer):
    """The texts, best first. Scores are the reranker's own; of equal ones the first that was sent goes first."""

    object: Literal["list"] = "list"
    results: list[Reranked]


class MapAnswer(Answer):
    """Documents drawn uniformly from one version of the index, at points of the plane on which their vectors vary most.

    The lists go together: document n has `ids[n]`, `titles[n]`, `x[n]`, `y[n]`. `documents` is how many the index has,
    `explained` the share of the sample's variance that the plane keeps. Search with `include: ["map"]` puts hits on it.
    """

    object: Literal["map"] = "map"
    index_version: str
    documents: int
    method: Literal["pca"] = "pca"
    explained: float
    ids: list[str]
    titles: list[str | None]
    x: list[float]
    y: list[float]
