"""Requests and answers of the HTTP interface: strict types, unknown fields refused, every size bounded.

Knows shapes and bounds. Knows no route, no model, no index. What passes here may go to a tokenizer and to FAISS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from rayvec.indexing.filters import Filter, check

if TYPE_CHECKING:
    from rayvec.serving.search import Options

MAX_K = 1_000
MAX_TEXTS = 64
MAX_CHARACTERS = 100_000
MAX_INSTRUCTION = 2_000
MAX_IDS = 32_768

MAX_RERANKED = 200
#: Of one write.
MAX_DOCUMENTS = 256
MAX_DELETES = 1_000
MAX_ID_BYTES = 512
MAX_COLUMNS = 256
#: Documents on a map.
MAX_POINTS = 5_000
#: Numbers of all vectors that one answer carries.
MAX_VALUES = 2_000_000

Mode = Literal["hybrid", "dense", "lexical"]
Fusion = Literal["weighted", "rrf"]
Include = Literal["text", "payload", "vector", "map"]


def _encodable(text: str) -> str:
    """A lone surrogate is valid JSON but no text: it has no UTF-8 form, and tokenizers fail on it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}, which is not text") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; give some text")
    return text


def _short(id_: str) -> str:
    if len(id_.encode()) > MAX_ID_BYTES:
        raise ValueError(f"has more than {MAX_ID_BYTES} bytes")
    return id_


DocumentId = Annotated[str, Field(min_length=1), AfterValidator(_encodable), AfterValidator(_short)]
Version = Annotated[str, Field(pattern=r"^v[1-9][0-9]{0,17}$")]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_encodable), AfterValidator(_not_blank)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Instruction = Annotated[str, Field(max_length=MAX_INSTRUCTION), AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS)]
TokenLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_TEXTS)]


def _shape(value: Any) -> str:
    """Which of the accepted forms a value means, told by its first element, so that only one set of errors is shown."""
    if not isinstance(value, list):
        return "<text>"
    head = value[0] if value else ""
    if isinstance(head, list):
        return "<token lists>"
    return "<tokens>" if isinstance(head, int) and not isinstance(head, bool) else "<texts>"


OneOrMoreTexts = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Texts, Tag("<texts>")],
    Discriminator(lambda value: "<texts>" if isinstance(value, list) else "<text>"),
]
TextsOrTokens = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Texts, Tag("<texts>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[TokenLists, Tag("<token lists>")],
    Discriminator(_shape),
]


class Request(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class Answer(BaseModel):
    """Base of what clients get. Not validated on the way out: numbers are checked where they are made."""

    # A payload may hold bytes, and those are not always text.
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64")


class SearchRequest(Request):
    """One or many queries against the index."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "read a parquet file", "k": 3, "mode": "hybrid", "include": ["text"]}]
        }
    )

    query: OneOrMoreTexts = Field(description="one query, or a list of up to 64")
    k: int = Field(10, ge=1, le=MAX_K, description="hits per query")
    mode: Mode = Field("hybrid", description="dense: by meaning; lexical: by words (BM25); hybrid: both, fused by rank")
    instruction: Instruction | None = Field(
        None, description="what the query is for; goes before it, as the encoder does"
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
        description="only documents that pass; conditions on columns (eq, ne, gt, gte, lt, lte, in), and, or, not",
        examples=[{"and": [{"field": "year", "gte": 2020}, {"not": {"field": "lang", "in": ["de", "fr"]}}]}],
    )
    fusion: Fusion = Field(
        "weighted", description="of a hybrid search: by scores brought to [0, 1], or by reciprocal ranks"
    )
    dense_weight: float | None = Field(
        None, ge=0, le=100, description="what the dense ranking counts in a hybrid one, where the lexical one counts 1"
    )
    min_score: float | None = Field(None, description="leave out hits below this score, in the terms of the mode asked")
    unique_by: str | None = Field(
        None, min_length=1, max_length=256, description="of hits with the same value in this column, only the best"
    )
    rerank: int | None = Field(
        None, ge=1, le=MAX_RERANKED, description="put the first so many hits in the order of the service's reranker"
    )

    min_index_version: Version | None = Field(
        None, description="answer from this version or a later one: what a write answered, so that it is seen here"
    )
    allow_partial: bool = Field(
        True,
        description="where the vectors lie in several processes and one does not answer: search the others and say so "
        "in `coverage` and `missing_parts`; if false, answer 503",
    )

    @property
    def options(self) -> Options:
        """All but the queries and their instruction."""
        from rayvec.serving.search import Options

        own = {"query", "instruction", "include"}
        names = type(self).model_fields.keys() - own
        return Options(**{name: getattr(self, name) for name in names}, include=tuple(self.include))

    @property
    def queries(self) -> list[str]:
        """The queries as a list."""
        return [self.query] if isinstance(self.query, str) else self.query


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
    signals: dict[str, Signal] = {}


class SearchResult(Answer):
    """The hits of one query, best first. `truncated` says that the encoder saw only the query's beginning."""

    hits: list[Hit]
    truncated: bool = False


class Timings(Answer):
    """Milliseconds: the encoder's part, the index's part, and all of the request."""

    encode_ms: float
    search_ms: float
    total_ms: float


class Usage(Answer):
    """Tokens that the encoder read."""

    prompt_tokens: int
    total_tokens: int


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


class Document(Request):
    """A document to be put in; the same shape that hits have."""

    id: DocumentId
    title: Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(_encodable)] | None = None
    text: Text
    payload: dict[str, Any] = Field(
        default={}, max_length=MAX_COLUMNS, description="values of the index's other columns; those left out are null"
    )


def _different(documents: list[Document]) -> list[Document]:
    ids = set()
    for place, document in enumerate(documents):
        if document.id in ids:
            raise ValueError(f"document {place} has the id of an earlier one; send each id once")
        ids.add(document.id)
    return documents


class WriteRequest(Request):
    """Base of what changes the index."""

    wait: bool = Field(False, description="answer only when every search finds it (`live`), not as soon as it is kept")


class UpsertRequest(WriteRequest):
    """Documents to put in; one whose id is there replaces it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"documents": [{"id": "note-1", "title": "Paths", "text": "join two paths"}], "wait": True}]
        }
    )

    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_DOCUMENTS), AfterValidator(_different)]


class DeleteRequest(WriteRequest):
    """Ids of documents to take out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["note-1", "note-2"]}]})

    ids: list[DocumentId] = Field(min_length=1, max_length=MAX_DELETES)


class WriteAnswer(Answer):
    """What a write did. It is on disk: no kill of any process loses it.

    `index_version` is the version that holds it, or the one that held it already; `live`: every search finds it now.
    `unchanged` documents were there already, word for word. `truncated` names those of which the encoder saw only the
    beginning.
    """

    object: Literal["write"] = "write"
    index_version: str
    live: bool
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0
    unknown_ids: list[str] = []
    truncated: list[str] = []
    usage: Usage
    total_ms: float


class Column(Answer):
    """A column of the documents: its Arrow type, and whether a filter may test it."""

    name: str
    type: str
    filterable: bool


class Proof(Answer):
    """The recall that was measured when the version was made, and how many rows have changed since it was."""

    recall: float
    target: float
    queries: int | None = None
    unproved_rows: int = 0


class ServedIndex(Answer):
    """The index that is served, and the version that answers.

    `advice`: why it should be compacted, if it should; `refused`: a newer version that is not served, and why.
    """

    id: str
    object: Literal["index"] = "index"
    created: int
    version: str
    writable: bool
    documents: int
    deleted_rows: int
    segments: int
    dimensions: int
    dimensions_indexed: int
    metric: str
    kind: str
    search: dict[str, int]
    modes: list[Mode]
    columns: list[Column]
    model: str
    fingerprint: str
    proof: Proof
    advice: str | None = None
    refused: str | None = None


class Indexes(Answer):
    """The indices that are served: one."""

    object: Literal["list"] = "list"
    data: list[ServedIndex]


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


class EmbeddingRequest(Request):
    """OpenAI's request, and `instruction`. Token ids are those of this model's own tokenizer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "hash:64", "input": ["a text", "another"]}]})

    input: TextsOrTokens = Field(description="a text, a list of up to 64, a list of token ids, or a list of such lists")
    model: str = Field(max_length=256, description="as `GET /v1/models` names it")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="keep this many leading dimensions, normalised")
    user: str | None = Field(None, max_length=512, description="accepted for OpenAI's clients, and ignored")
    instruction: Instruction | None = Field(None, description="for queries: what they are for")

    def texts_or_ids(self) -> tuple[list[str], list[list[int]] | None]:
        """The input as a list of texts, or as a list of token ids."""
        value: Any = self.input
        rows = value if isinstance(value, list) else [value]
        if isinstance(rows[0], str):
            return rows, None
        return [], rows if isinstance(rows[0], list) else [rows]


class Embedding(Answer):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(Answer):
    """OpenAI's answer, the index version that these vectors can be searched against, and which inputs were cut."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    index_version: str
    truncated: list[int]


class Model(Answer):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["rayvec"] = "rayvec"
    dimensions: int
    max_input_tokens: int
    fingerprint: str
    index_version: str


class Models(Answer):
    """The models that are served: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Ready(Answer):
    """What answers now. `refused` tells of a newer version of the index that is not served, and why."""

    status: Literal["ready"] = "ready"
    model: str
    index_version: str
    documents: int
    modes: list[Mode]
    refused: str | None = None
    missing_parts: list[int] = Field([], description="parts of the vectors that did not answer a moment ago")
    recall: float | None = Field(None, description="share of true neighbours found, of a few vectors searched lately")


class ErrorBody(Answer):
    """What went wrong, and with which field."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(Answer):
    """OpenAI's error shape."""

    error: ErrorBody
