"""The index as tools for assistants: `search` and `fetch`, by the Model Context Protocol over HTTP (POST /mcp).

Stateless: each request stands alone, so that any gateway may answer it. Names and shapes are those that assistants
expect of a source of documents. Knows the gateway and the protocol's own library. Knows no key, no index.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import mcp_types as protocol
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException

from rayvec import __version__
from rayvec.serving.config import Mode
from rayvec.serving.problems import from_validation, internal_error
from rayvec.serving.schemas import DocumentId, SearchRequest
from rayvec.serving.schemas.base import Request, Text
from rayvec.serving.strict import StrictRequest

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from rayvec.serving.gateway import Gateway

_LOG = logging.getLogger(__name__)

PATH = "/mcp"
#: Documents that an assistant may have at a time, and what it reads of each before it fetches one: all of it is put
#: into its context.
MAX_HITS = 50
SHOWN_CHARACTERS = 2_000
#: Columns that the description of `search` names.
_NAMED = 50

_READS = protocol.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)


class Search(Request):
    """What `search` is asked."""

    query: Text = Field(description="what to look for, as a question or in a few words")
    k: int = Field(10, ge=1, le=MAX_HITS, description="how many documents")
    mode: Mode | None = Field(
        None, description="dense: by meaning; lexical: by the very words; hybrid: both; best left to the service"
    )
    filter: dict[str, Any] | None = Field(
        None,
        description='only documents that pass, as {"field": "year", "gte": 2020}; tests are eq, ne, gt, gte, lt, lte, '
        'in (a list) and exists; put together with {"and": […]}, {"or": […]}, {"not": {…}}',
    )


class Fetch(Request):
    """What `fetch` is asked."""

    id: DocumentId = Field(description="the id of a document that search found")


class Tools:
    """An ASGI application, for POST alone: there are no sessions to be listened to or ended."""

    def __init__(self, gateway: Gateway, body_bytes: int) -> None:
        self._gateway = gateway
        server: Server[Any] = Server(
            "rayvec",
            version=__version__,
            instructions="A search index: `search` finds documents, `fetch` gives the whole of one.",
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        self._sessions = StreamableHTTPSessionManager(
            server,
            json_response=True,
            stateless=True,
            # The guard around the whole interface has looked at the host already.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=body_bytes,
        )
        self._runs: asyncio.Task[None] | None = None
        self._there = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Its body is bounded in bytes and time as any other."""
        body = await StrictRequest(scope, receive).body()
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._started()
        await self._sessions.handle_request(scope, again, send)

    async def _started(self) -> None:
        """The library's own task, which lives as long as this process, is started by the first request."""
        if self._runs is None:
            self._runs = asyncio.create_task(self._run())
        await self._there.wait()

    async def _run(self) -> None:
        async with self._sessions.run():
            self._there.set()
            await asyncio.Event().wait()

    async def _list(self, *_: object) -> protocol.ListToolsResult:
        tools = [
            protocol.Tool(
                name="search",
                title="Search",
                description=f"Find documents, best first, each with its id, title, the beginning of its text and its "
                f"score. {await self._columns()}",
                input_schema=Search.model_json_schema(),
                annotations=_READS,
            ),
            protocol.Tool(
                name="fetch",
                title="Fetch",
                description="The whole of one document, by its id.",
                input_schema=Fetch.model_json_schema(),
                annotations=_READS,
            ),
        ]
        return protocol.ListToolsResult(tools=tools)

    async def _columns(self) -> str:
        """Which columns a filter may test."""
        (index,) = (await self._gateway.indexes()).data
        named = [f"{column.name} ({column.type})" for column in index.columns if column.filterable]
        more = ", …" if len(named) > _NAMED else ""
        return f"A filter may test {', '.join(named[:_NAMED])}{more}."

    async def _call(self, _: object, params: protocol.CallToolRequestParams) -> protocol.CallToolResult:
        """What goes wrong is told to the assistant, which can do better."""
        asked = params.arguments or {}
        try:
            if params.name == "search":
                return _told(await self._search(Search.model_validate(asked)))
            if params.name == "fetch":
                return _told(await self._fetch(Fetch.model_validate(asked)))
            return _failed(f"there is no tool {params.name!r:.64}; there are search and fetch")
        except ValidationError as error:
            return _failed(str(from_validation(error.errors(include_url=False)).detail))
        except HTTPException as problem:
            return _failed(str(problem.detail))
        except Exception:
            _LOG.exception("a tool failed")
            return _failed(str(internal_error().detail))

    async def _search(self, asked: Search) -> dict[str, Any]:
        request = SearchRequest.model_validate(asked.model_dump(exclude_none=True))
        answer = await self._gateway.search(request)
        hits = answer.results[0].hits
        return {"results": [_shown(hit.model_dump(mode="json")) for hit in hits], "index_version": answer.index_version}

    async def _fetch(self, asked: Fetch) -> dict[str, Any]:
        found = (await self._gateway.document(asked.id)).model_dump(mode="json")
        return {
            "id": found["id"],
            "title": found["title"] or found["id"],
            "text": found["text"] or "",
            **_payload(found),
            "index_version": found["index_version"],
        }


def _shown(hit: dict[str, Any]) -> dict[str, Any]:
    text = hit["text"] or ""
    return {
        "id": hit["id"],
        "title": hit["title"] or hit["id"],
        "text": text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…",
        **_payload(hit),
        "score": hit["score"],
    }


def _payload(found: dict[str, Any]) -> dict[str, Any]:
    """The other columns; one that is a link stands by itself, where assistants look for what they cite."""
    payload = found["payload"] or {}
    return {"metadata": payload} | ({"url": payload["url"]} if isinstance(payload.get("url"), str) else {})


def _told(answer: dict[str, Any]) -> protocol.CallToolResult:
    """The answer twice, as the protocol has it: as values, and as text for what reads none."""
    text = protocol.TextContent(type="text", text=json.dumps(answer, ensure_ascii=False))
    return protocol.CallToolResult(content=[text], structured_content=answer)


def _failed(message: str) -> protocol.CallToolResult:
    return protocol.CallToolResult(content=[protocol.TextContent(type="text", text=message)], is_error=True)
