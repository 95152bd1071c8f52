"""A typed client of the service, for threads (Client) and for asyncio (AsyncClient).

Answers are the models of `schemas`; an error is a ServiceError with the service's own words. Requests that the service
refuses for want of room, or that fail on the way, are sent again after the time it names: all of them may be repeated.
Knows HTTP and schemas. Loads no model, no index, no Ray.

    from rayvec import Client

    with Client("http://127.0.0.1:8000", api_key="rv-…") as client:
        for hit in client.search("how to join two paths", k=3).results[0].hits:
            print(hit.score, hit.id, hit.text)
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Required, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt
from httpx_retries import Retry, RetryTransport
from pydantic import BaseModel

from rayvec.serving.schemas import (
    MAX_POINTS,
    DocumentAnswer,
    EmbeddingAnswer,
    Fusion,
    Hit,
    Include,
    Indexes,
    MapAnswer,
    Mode,
    Model,
    Models,
    Ready,
    RerankAnswer,
    SearchAnswer,
    ServedIndex,
    WriteAnswer,
)

A = TypeVar("A", bound=BaseModel)

#: What passes by itself: no room, a part that is started again, a proxy that has lost its service. Serve's own proxy
#: says 500 where the gateway died that it had asked; whatever is asked may be asked again.
AGAIN = (429, 500, 502, 503)
#: Texts in one request: few enough that a slow encoder is done with them in time.
TEXTS_AT_ONCE = 64
#: Seconds before the second try where the service names none; twice as many before each further one.
PAUSE_SECONDS = 0.2


class ServiceError(Exception):
    """The service refused or failed. `status` of HTTP, `code` and `param` as the service names them.

    Where it did not answer at all, the status is 0 and the code "no_connection", or "timeout".
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status = status
        self.code = code
        self.param = param


class SearchOptions(TypedDict, total=False):
    """What may be asked of a search beside its queries; `schemas.SearchRequest` tells what each does.

    vectors: [queries, dim], or [dim] of one, instead of queries; like: ids of documents, or one, instead of queries.
    """

    vectors: npt.ArrayLike
    like: str | Sequence[str]
    k: int
    mode: Mode
    instruction: str | None
    include: Sequence[Include]
    filter: dict[str, Any]
    fusion: Fusion
    dense_weight: float | None
    min_score: float | None
    unique_by: str | None
    rerank: int | None
    min_index_version: str | None
    allow_partial: bool


class EmbedOptions(TypedDict, total=False):
    """What may be asked of vectors: `schemas.EmbeddingRequest` tells what each does."""

    input_type: Literal["query", "document"] | None
    instruction: str | None
    dimensions: int | None


class DocumentFields(TypedDict, total=False):
    """A document to put in; `schemas.Document` tells what each field may be. id and text are asked for."""

    id: Required[str]
    title: str | None
    text: Required[str]
    payload: dict[str, Any]


def _search_body(query: str | Sequence[str] | None, options: SearchOptions) -> dict[str, Any]:
    body: dict[str, Any] = dict(options)
    if query is not None:
        body["query"] = query if isinstance(query, str) else list(query)
    if "vectors" in body:
        body["vectors"] = np.atleast_2d(np.asarray(body["vectors"], np.float32)).tolist()
    if "like" in body:
        body["like"] = list(_as_list(body["like"]))
    return body


def _write_body(documents: Sequence[DocumentFields | Hit | DocumentAnswer], *, wait: bool) -> dict[str, Any]:
    fields = set(DocumentFields.__annotations__)
    plain = [
        one.model_dump(mode="json", include=fields, exclude_none=True) if isinstance(one, BaseModel) else one
        for one in documents
    ]
    return {"documents": plain, "wait": wait}


def _rerank_body(query: str, documents: Sequence[str], top_n: int | None, *, return_documents: bool) -> dict[str, Any]:
    given = {} if top_n is None else {"top_n": top_n}
    return {"query": query, "documents": list(documents), "return_documents": return_documents, **given}


def _embed_bodies(texts: Sequence[str], model: str, options: EmbedOptions) -> list[dict[str, Any]]:
    given = {name: value for name, value in options.items() if value is not None}
    return [
        {"input": list(texts[start : start + TEXTS_AT_ONCE]), "model": model, "encoding_format": "base64", **given}
        for start in range(0, len(texts), TEXTS_AT_ONCE)
    ]


def _as_list(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _vectors(answers: Sequence[EmbeddingAnswer], count: int, dim: int) -> np.ndarray:
    """The rows of all answers, float32 [count, dim]; of other dimensions where the model is not the one of before."""
    data = [base64.b64decode(str(row.embedding)) for answer in answers for row in answer.data]
    if len(data) != count or len({len(row) for row in data}) > 1:
        message = "the answers do not fit together: the service changed to another encoder meanwhile; ask again"
        raise ServiceError(HTTPStatus.SERVICE_UNAVAILABLE, "encoder_changed", message)
    dim = len(data[0]) // 4 if data else dim
    return np.frombuffer(b"".join(data), "<f4").reshape(count, dim).astype(np.float32)


@contextlib.contextmanager
def _lost(base_url: httpx.URL) -> Iterator[None]:
    """Raise a ServiceError where no answer came."""
    try:
        yield
    except httpx.TimeoutException as error:
        message = f"{base_url} did not answer in time ({type(error).__name__}); ask again, or give a longer timeout"
        raise ServiceError(0, "timeout", message) from error
    except httpx.TransportError as error:
        message = f"{base_url} cannot be reached ({error}); check the address, and that the service runs"
        raise ServiceError(0, "no_connection", message) from error


def _read(response: httpx.Response, kind: type[A]) -> A:
    if response.is_success:
        return kind.model_validate_json(response.content)
    try:
        error = response.json()["error"]
        raise ServiceError(response.status_code, error["code"], error["message"], error["param"])
    except (ValueError, KeyError, TypeError):
        raise ServiceError(response.status_code, "no_answer", f"{response.url} did not answer as rayvec does") from None


def _settings(base_url: str, api_key: str | None, timeout: float, retries: int) -> dict[str, Any]:
    return {
        # As OpenAI's clients are given it, too: the paths here begin with it.
        "base_url": base_url.rstrip("/").removesuffix("/v1"),
        "timeout": timeout,
        "headers": {"authorization": f"Bearer {api_key}"} if api_key else {},
        "transport": RetryTransport(
            retry=Retry(
                total=retries,
                allowed_methods=["GET", "POST", "DELETE"],
                status_forcelist=AGAIN,
                backoff_factor=PAUSE_SECONDS,
            )
        ),
    }


class Client:
    """Asks the service at `base_url`, from any thread.

    timeout: seconds for one try. retries: further tries where the service has no room or does not answer.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 3) -> None:
        self._http = httpx.Client(**_settings(base_url, api_key, timeout, retries))
        self._model: Model | None = None

    def search(
        self,
        query: str | Sequence[str] | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Documents for one query or several, or for `vectors`, or those `like` others. Raises ServiceError."""
        return self._post("/v1/search", _search_body(query, options), SearchAnswer)

    def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> np.ndarray:
        """Vectors float32 [n, dim] of any number of texts, [dim] of a single string. Raises ServiceError."""
        self._model = model = self._model or self.model()
        bodies = _embed_bodies(_as_list(texts), model.id, options)
        answers = [self._post("/v1/embeddings", body, EmbeddingAnswer) for body in bodies]
        vectors = _vectors(answers, len(_as_list(texts)), options.get("dimensions") or model.dimensions)
        return vectors[0] if isinstance(texts, str) else vectors

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, return_documents: bool = False
    ) -> RerankAnswer:
        """Texts in the order of the service's reranker, by their places. Raises ServiceError."""
        body = _rerank_body(query, documents, top_n, return_documents=return_documents)
        return self._post("/v1/rerank", body, RerankAnswer)

    def document(self, id: str) -> DocumentAnswer:
        """One document by its id. Raises ServiceError, with status 404 where it is not there."""
        return self._ask("GET", f"/v1/documents/{quote(id, safe='')}", DocumentAnswer)

    def map(self, limit: int = MAX_POINTS) -> MapAnswer:
        """A sample of the documents as points of a plane. Raises ServiceError."""
        return self._ask("GET", "/v1/map", MapAnswer, params={"limit": limit})

    def upsert(self, documents: Sequence[DocumentFields | Hit | DocumentAnswer], *, wait: bool = False) -> WriteAnswer:
        """Put documents in by id, also hits as they are: they are on disk when this returns. Raises ServiceError.

        wait: return only when every search finds them. To see them in one search, ask it with
        `min_index_version=answer.index_version`.
        """
        return self._post("/v1/documents", _write_body(documents, wait=wait), WriteAnswer)

    def delete(self, ids: str | Sequence[str], *, wait: bool = False) -> WriteAnswer:
        """Take one document out or several, by id; ids that are not there are told. Raises ServiceError."""
        body = {"ids": list(_as_list(ids)), "wait": wait}
        return self._ask("DELETE", "/v1/documents", WriteAnswer, json=body)

    def indexes(self) -> list[ServedIndex]:
        """The index that is served: kind, columns, recall. Raises ServiceError."""
        return self._ask("GET", "/v1/indexes", Indexes).data

    def model(self) -> Model:
        """The model that is served. Raises ServiceError."""
        return self._ask("GET", "/v1/models", Models).data[0]

    def ready(self) -> Ready:
        """What answers now. Raises ServiceError when a part does not."""
        return self._ask("GET", "/ready", Ready)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any], kind: type[A]) -> A:
        return self._ask("POST", path, kind, json=body)

    def _ask(self, method: str, path: str, kind: type[A], **options: Any) -> A:
        with _lost(self._http.base_url):
            response = self._http.request(method, path, **options)
        return _read(response, kind)


class AsyncClient:
    """Asks the service at `base_url`, from one event loop; as `Client` does."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 3) -> None:
        self._http = httpx.AsyncClient(**_settings(base_url, api_key, timeout, retries))
        self._model: Model | None = None

    async def search(
        self,
        query: str | Sequence[str] | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchAnswer:
        """Documents for one query or several, or for `vectors`, or those `like` others. Raises ServiceError."""
        return await self._post("/v1/search", _search_body(query, options), SearchAnswer)

    async def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> np.ndarray:
        """Vectors float32 [n, dim] of any number of texts, [dim] of a single string. Raises ServiceError."""
        self._model = model = self._model or await self.model()
        bodies = _embed_bodies(_as_list(texts), model.id, options)
        answers = [await self._post("/v1/embeddings", body, EmbeddingAnswer) for body in bodies]
        vectors = _vectors(answers, len(_as_list(texts)), options.get("dimensions") or model.dimensions)
        return vectors[0] if isinstance(texts, str) else vectors

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, return_documents: bool = False
    ) -> RerankAnswer:
        """Texts in the order of the service's reranker, by their places. Raises ServiceError."""
        body = _rerank_body(query, documents, top_n, return_documents=return_documents)
        return await self._post("/v1/rerank", body, RerankAnswer)

    async def document(self, id: str) -> DocumentAnswer:
        """One document by its id. Raises ServiceError, with status 404 where it is not there."""
        return await self._ask("GET", f"/v1/documents/{quote(id, safe='')}", DocumentAnswer)

    async def map(self, limit: int = MAX_POINTS) -> MapAnswer:
        """A sample of the documents as points of a plane. Raises ServiceError."""
        return await self._ask("GET", "/v1/map", MapAnswer, params={"limit": limit})

    async def upsert(
        self, documents: Sequence[DocumentFields | Hit | DocumentAnswer], *, wait: bool = False
    ) -> WriteAnswer:
        """Put documents in by id, also hits as they are: they are on disk when this returns. Raises ServiceError.

        wait: return only when every search finds them. To see them in one search, ask it with
        `min_index_version=answer.index_version`.
        """
        return await self._post("/v1/documents", _write_body(documents, wait=wait), WriteAnswer)

    async def delete(self, ids: str | Sequence[str], *, wait: bool = False) -> WriteAnswer:
        """Take one document out or several, by id; ids that are not there are told. Raises ServiceError."""
        body = {"ids": list(_as_list(ids)), "wait": wait}
        return await self._ask("DELETE", "/v1/documents", WriteAnswer, json=body)

    async def indexes(self) -> list[ServedIndex]:
        """The index that is served: kind, columns, recall. Raises ServiceError."""
        return (await self._ask("GET", "/v1/indexes", Indexes)).data

    async def model(self) -> Model:
        """The model that is served. Raises ServiceError."""
        return (await self._ask("GET", "/v1/models", Models)).data[0]

    async def ready(self) -> Ready:
        """What answers now. Raises ServiceError when a part does not."""
        return await self._ask("GET", "/ready", Ready)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _post(self, path: str, body: dict[str, Any], kind: type[A]) -> A:
        return await self._ask("POST", path, kind, json=body)

    async def _ask(self, method: str, path: str, kind: type[A], **options: Any) -> A:
        with _lost(self._http.base_url):
            response = await self._http.request(method, path, **options)
        return _read(response, kind)
