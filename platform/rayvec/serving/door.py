"""Before the interface: where there is no room, or the service ends, a request is refused without a look at its body.

Refusing must cost far less than answering, or a service that is asked too much does nothing but refuse. Knows ASGI and
whether the gateway is full or draining. Knows no key and no route's meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayvec.serving.problems import overloaded, stopping, to_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from rayvec.serving.gateway import Gateway

#: Where work is asked for: what begins with these takes a place among the requests in flight.
WORK = ("/v1/search", "/v1/embeddings", "/v1/rerank", "/v1/documents")


#: What is answered until the process ends: it is alive, and is watched.
ALWAYS = ("/health", "/metrics")


class Door:
    """Lets requests for work through while there is room for them; others always, until the gateway is drained."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._gateway.opened():
            await self._answer(scope["path"])(scope, receive, send)

    def _answer(self, path: str) -> ASGIApp:
        if self._gateway.is_draining and path not in ALWAYS:
            return to_response(stopping())
        if self._gateway.is_full and path.startswith(WORK):
            return to_response(overloaded())
        return self._app
