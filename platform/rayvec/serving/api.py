"""The HTTP interface: routes, their errors, and the search page. One route is a schema in and a schema out.

Knows HTTP. Knows no model, no index, no Ray: a Gateway answers, wherever its parts run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from rayvec import __version__
from rayvec.serving.door import Door
from rayvec.serving.gateway import Gateway
from rayvec.serving.metrics import CONTENT_TYPE
from rayvec.serving.observer import REQUEST_ID, Observer
from rayvec.serving.pages import PAGE, content
from rayvec.serving.problems import from_validation, internal_error, to_response
from rayvec.serving.schemas import (
    MAX_POINTS,
    DeleteRequest,
    DocumentAnswer,
    DocumentId,
    EmbeddingAnswer,
    EmbeddingRequest,
    ErrorAnswer,
    Indexes,
    MapAnswer,
    Model,
    Models,
    Ready,
    RerankAnswer,
    RerankRequest,
    SearchAnswer,
    SearchRequest,
    UpsertRequest,
    WriteAnswer,
)
from rayvec.serving.security import OPEN_PATHS, Guard, Keys
from rayvec.serving.shortcut import Shortcut
from rayvec.serving.strict import StrictRoute

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "the body is not valid JSON",
        401: "no valid API key",
        403: "the key, the host or the service does not allow it",
        404: "no such model or route",
        408: "the body did not arrive in time",
        409: "the index is not what the service began with, or would be empty",
        413: "the body is too large",
        415: "the body is not JSON",
        422: "a field is missing, unknown or out of range",
        429: "too many requests at once; see Retry-After",
        503: "a part of the service does not answer now; see Retry-After",
    }.items()
}


class _Application(FastAPI):
    """Its description tells how a key is sent, and whether one must be (`state.needs_key`)."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description."""
        described = super().openapi()
        described["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"bearer": []}] if self.state.needs_key else [{}, {"bearer": []}]
        for path in OPEN_PATHS & described["paths"].keys():
            for operation in described["paths"][path].values():
                operation["security"] = []
        return described


def make_api(
    gateway: Gateway,
    *,
    body_bytes: int,
    keys: Keys | None = None,
    loopback_only: bool = True,
    cors_origins: Sequence[str] = (),
    access_log: logging.Logger | None = None,
    mcp: bool = False,
    under_serve: bool = False,
) -> ASGIApp:
    """The whole interface as an ASGI application. `/docs` is left out: its page loads scripts from elsewhere.

    mcp: whether assistants find tools at POST /mcp. under_serve: whether Serve stands around it, which sends a
    request's id back by itself.
    """
    app = _Application(
        title="rayvec",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # operation ids: names of methods in generated clients
    )
    app.state.needs_key = keys is not None
    app.state.body_bytes = body_bytes
    v1 = _v1(gateway)
    v2 = _v2(gateway)
    app.include_router(v1)
    app.include_router(v2)
    app.include_router(_health(gateway))
    app.include_router(_page())
    if mcp:
        from rayvec.serving import tools

        app.router.routes.append(Route(tools.PATH, tools.Tools(gateway, body_bytes), methods=["POST"]))
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)
    routes = frozenset([*app.openapi()["paths"], *PAGE, *([tools.PATH] if mcp else [])])
    app.openapi_schema = None  # made anew when it is asked for, with the prefix that it is asked below
    guarded: ASGIApp = Guard(Door(Shortcut(app, v1, v2), gateway.admission), keys, loopback_only=loopback_only)
    if cors_origins:  # outside the guard: a browser asks for permission without its key
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's JavaScript client sends a dozen of its own; there are no cookies to guard
            expose_headers=[REQUEST_ID, "retry-after"],
        )
    return Observer(guarded, routes, gateway.metrics, access_log, gateway.tracer, echoed=under_serve)


def _v1(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=_ERRORS)

    @router.post("/search", summary="Documents for one or many queries", response_model=SearchAnswer)
    async def search(request: SearchRequest) -> Response:
        return _json(await gateway.search(request))

    @router.post("/rerank", summary="Texts in the order of the service's reranker", response_model=RerankAnswer)
    async def rerank(request: RerankRequest) -> Response:
        return _json(await gateway.rerank(request))

    @router.post("/embeddings", summary="Vectors of texts, as OpenAI's API gives them", response_model=EmbeddingAnswer)
    async def embeddings(request: EmbeddingRequest) -> Response:
        embedded = await gateway.embed(request)
        if embedded.is_long:
            return StreamingResponse(embedded.pieces(), media_type="application/json")
        return Response(embedded.whole(), media_type="application/json")

    @router.post("/documents", summary="Put documents in, by id; kept when it answers", response_model=WriteAnswer)
    async def upsert(request: UpsertRequest) -> Response:
        return _json(await gateway.upsert(request))

    @router.get("/documents/{id:path}", summary="One document, by its id", response_model=DocumentAnswer)
    async def document(id: Annotated[DocumentId, Path()]) -> Response:
        return _json(await gateway.document(id))

    @router.delete("/documents", summary="Take documents out, by their ids", response_model=WriteAnswer)
    async def delete(request: DeleteRequest) -> Response:
        return _json(await gateway.delete(request))

    @router.delete(
        "/documents/{id:path}",
        summary="Take one document out; for proxies that drop the body of a DELETE",
        response_model=WriteAnswer,
    )
    async def delete_one(id: Annotated[DocumentId, Path()], wait: bool = False) -> Response:
        return _json(await gateway.delete(DeleteRequest(ids=[id], wait=wait)))

    @router.get("/indexes", summary="The index that is served", response_model=Indexes)
    async def indexes() -> Response:
        return _json(await gateway.indexes())

    @router.get("/map", summary="A sample of the documents as points of a plane", response_model=MapAnswer)
    async def map(limit: Annotated[int, Query(ge=1, le=MAX_POINTS)] = MAX_POINTS) -> Response:
        return _json(await gateway.map(limit))

    @router.get("/models/", include_in_schema=False)
    @router.get("/models", summary="The model that is served", response_model=Models)
    async def models() -> Response:
        return _json(await gateway.models())

    @router.get("/models/{id:path}", summary="The same by its name, as OpenAI's API gives it", response_model=Model)
    async def model(id: Annotated[str, Path(max_length=256)]) -> Response:
        return _json(await gateway.model(id))

    return router


def _v2(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/v2", route_class=StrictRoute, responses=_ERRORS)

    @router.post("/rerank", summary="The same where Cohere's newer clients ask", response_model=RerankAnswer)
    async def rerank_v2(request: RerankRequest) -> Response:
        return _json(await gateway.rerank(request))

    return router


def _health(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    # Monitors and load balancers ask by HEAD, whose answer is that of GET without its body.
    @router.head("/health", include_in_schema=False)
    @router.get("/health", summary="This process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", summary="Model and index answer", response_model=Ready, responses={503: _ERRORS[503]})
    async def ready() -> Response:
        return _json(await gateway.ready())

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await gateway.numbers(), media_type=CONTENT_TYPE)

    return router


def _page() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    for path, name in PAGE.items():
        router.add_api_route(path, _file(*content(name)), methods=["GET", "HEAD"])
    return router


def _file(body: bytes, media_type: str) -> Any:
    """A route for one file, sent only when the browser does not have this very content."""
    headers = {"etag": f'"{hashlib.sha256(body).hexdigest()[:16]}"', "cache-control": "no-cache"}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    return send


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _on_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return to_response(error)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The framework says first where a field was: query, path, … A client knows only the field.
    return to_response(from_validation([{**one, "loc": one["loc"][1:]} for one in error.errors()]))


async def _on_bug(_: Request, error: Exception) -> JSONResponse:  # noqa: ARG001, its text may hold the user's
    return to_response(internal_error())
