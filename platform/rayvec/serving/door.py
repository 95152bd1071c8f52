"""Before the interface: where there is no room, a request is refused without a look at its body.

Refusing must cost far less than answering, or a service that is asked too much does nothing but refuse. Knows ASGI and
whether the gateway is full. Knows no key and no route's meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvec.serving.problems import overloaded, to_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from rayvec.serving.gateway import Gateway

#: Where work is asked for: what begins with these takes a place among the requests in flight.
WORK = ("/v1/search", "/v1/embeddings", "/v1/rerank", "/v1/documents")


class Door:
    """Lets requests for work through while there is room for them, and all others always."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        full = scope["type"] == "http" and self._gateway.is_full and scope["path"].startswith(WORK)
        answer = to_response(overloaded()) if full else self._app
        await answer(scope, receive, send)
