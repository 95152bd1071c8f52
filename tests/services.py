"""A small real index that the HashEncoder made, and the service over it in this process: what serving's tests ask."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.api import make_api
from rayvec.serving.config import Limits, SearchDefaults
from rayvec.serving.gateway import Gateway
from rayvec.serving.query_encoder import QueryEncoder
from rayvec.serving.retriever import Retriever
from rayvec.serving.security import Keys
from rayvec.serving.writer import Writer
from tests.artifacts import texts_for, write_index

MODEL = "hash:64"
COUNT = 24


def write_service_index(folder: Path, reference: str = MODEL, count: int = COUNT) -> Path:
    """An index over a few signatures; documents are `doc-0`… with the payload `line`."""
    encoder = HashEncoder.parse(reference)
    texts = texts_for(count)
    write_index(folder, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder=reference)
    return folder


async def make_gateway(
    index: Path,
    encoder: HashEncoder | None = None,
    limits: Limits | None = None,
    reranker: str | None = None,
    writable: bool = False,
    traces: str | None = None,
    **settings: Any,
) -> Gateway:
    """The gateway and its parts, as Serve would start them, without Serve. A writable index is followed, not pinned.

    settings: further ones of the Gateway.
    """
    encoder = encoder or HashEncoder.parse(MODEL)
    retriever = Retriever(str(index), encoder.fingerprint, reranker, poll_seconds=0.05)
    await retriever.reconfigure({"version": None if writable else "v1"})
    service = QueryEncoder(encoder, encoder.fingerprint, limits)
    writer = Writer(str(index), service, MODEL, encoder.fingerprint) if writable else None
    names = {"model": MODEL, "index_name": index.name, "index_version": "v1"}
    return Gateway(service, retriever, writer, **names, limits=limits, cache_bytes=1 << 20, traces=traces, **settings)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An ASGI application behind uvicorn, on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """Asks the service's ASGI application, one request after another, with an event loop of its own."""

    def __init__(
        self,
        index: Path,
        limits: Limits | None = None,
        keys: Keys | None = None,
        encoder: HashEncoder | None = None,
        reranker: str | None = None,
        writable: bool = False,
        traces: str | None = None,
        instructions: dict[str, str] | None = None,
        defaults: SearchDefaults | None = None,
        **options: Any,
    ) -> None:
        self.runner = asyncio.Runner()
        settings = {"instructions": instructions, "defaults": defaults}
        gateway = self.runner.run(make_gateway(index, encoder, limits, reranker, writable, traces, **settings))
        self.gateway = gateway
        self.app = make_api(gateway, body_bytes=(limits or Limits()).body_bytes, keys=keys, **options)
        # An error that no handler takes must be seen as the 500 that a client would see.
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, by the arguments of httpx."""
        return self.runner.run(self.http.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.ask("POST", path, json=body)

    def send(self, path: str, content: Any, **headers: str) -> httpx.Response:
        """A body as it is, bytes or an async iterator of them, as JSON unless told otherwise."""
        return self.ask("POST", path, content=content, headers={"content-type": "application/json", **headers})

    def close(self) -> None:
        self.runner.run(self.http.aclose())
        self.runner.close()
