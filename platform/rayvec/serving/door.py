"""Before the interface: where there is no room, or the service ends, a request is refused without a look at its body.

Refusing must cost far less than answering, or a service that is asked too much does nothing but refuse: where Serve
lets us, the door stands before Serve's own bookkeeping too (`middlewares`). Knows ASGI and who may come in. Knows no
key and no route's meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from starlette.middleware import Middleware

from rayvec.serving.observer import PAST_SERVE, REQUEST_ID, is_usable_id
from rayvec.serving.paths import path_of
from rayvec.serving.problems import overloaded, stopping, to_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from rayvec.serving.admission import Admission

#: Where work is asked for: what begins with these takes a place among the requests in flight.
WORK = ("/v1/search", "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/v1/documents")

#: What is answered until the process ends: it is alive, and is watched.
ALWAYS = ("/health", "/metrics")
#: Serve's own, which HAProxy asks; no path of ours begins so.
SERVES = "/-/"
_REQUEST_ID = REQUEST_ID.encode()
#: Made once: a response leaves its own headers as they are.
_STOPPING, _OVERLOADED = to_response(stopping()), to_response(overloaded())


class Door:
    """Lets requests for work through while there is room for them; others always, until the gateway is drained."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._admission.arrived()
        try:
            await (refusal(self._admission, path_of(scope)) or self._app)(scope, receive, send)
        finally:
            self._admission.left()


def refusal(admission: Admission, path: str) -> ASGIApp | None:
    """What answers a request that is refused now; None where it may come in."""
    if admission.is_draining and path not in ALWAYS:
        return _STOPPING
    if admission.is_full and path.startswith(WORK):
        return _OVERLOADED
    return None


class FrontDoor:
    """Around all that Serve does with a request, in a gateway's process: what is refused goes to our application alone.

    That answers it with its key checked, its id, its line in the log and its count, as any other; nothing that is
    answered passes Serve by. A process without a gateway, as Serve's own proxy is, lets everything through.
    """

    #: Of the gateway in this process: who may come in, and the whole interface.
    _inside: ClassVar[tuple[Admission, ASGIApp] | None] = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @classmethod
    def stands_before(cls, admission: Admission, interface: ASGIApp) -> None:
        """From now on refuse for this interface."""
        cls._inside = (admission, interface)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        app = self._app
        if scope["type"] == "http" and self._inside is not None:
            admission, interface = self._inside
            scope = _without_unusable_id(scope)
            # From here to the door inside nothing waits, so what is refused here is refused there. (Below a prefix,
            # which Serve alone knows, only there.)
            if not scope["path"].startswith(SERVES) and refusal(admission, scope["path"]) is not None:
                app, scope = interface, {**scope, PAST_SERVE: True}
        await app(scope, receive, send)


def _without_unusable_id(scope: Scope) -> Scope:
    """Serve would answer with whatever id a client gives: what cannot be one is taken away, and another is made."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID and not is_usable_id(value.decode("latin-1")):
            return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != _REQUEST_ID]}
    return scope


def middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names: Serve puts them before everything."""
    return [Middleware(FrontDoor)]
