"""Around everything: a request's id, how long it and its stages took, and one line of the access log.

Never a text, never a key. Knows ASGI. Knows no route's meaning, no model, no index.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from datetime import UTC, datetime
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayvec.errors import UserError
from rayvec.serving.metrics import STAGES, Metrics
from rayvec.serving.paths import path_of
from rayvec.serving.tracing import Tracer, answered

REQUEST_ID = "x-request-id"
#: Where the guard leaves the id of the key that a request came with.
KEY_ID = "rayvec.key_id"
#: In the scope of what is answered before Serve has seen it.
PAST_SERVE = "rayvec.past_serve"
#: Visible ASCII.
_USABLE_ID = re.compile(r"[!-~]{1,128}")
_NO_ANSWER = 499  # the client went away first


class Observer:
    """Gives each request an id (the client's own, if it sends a usable one), and counts and logs its answer.

    echoed: whether Serve, which gives a request an id where the client has not, answers with it by itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: frozenset[str],
        metrics: Metrics,
        access_log: logging.Logger | None = None,
        tracer: Tracer | None = None,
        *,
        echoed: bool = False,
    ) -> None:
        self._echoed = echoed
        self._tracer = tracer or Tracer()
        self._app = app
        self._routes = routes
        #: Of routes with a part that varies, what stands before it.
        self._prefixes = {route.partition("{")[0]: route for route in routes if "{" in route}
        self._metrics = metrics
        self._log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if is_usable_id(given) else f"{random.getrandbits(128):032x}"
        names_it = not (self._echoed and request_id == given and PAST_SERVE not in scope)
        begin, status = time.perf_counter(), _NO_ANSWER
        stages: dict[str, float] = {}
        token = STAGES.set(stages)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if names_it:
                    message["headers"] = [*message.get("headers", ()), (REQUEST_ID.encode(), request_id.encode())]
            await send(message)

        with self._tracer.request(scope["method"], headers) as span:
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                route = self._route(path_of(scope))
                if span.is_recording():
                    answered(span, scope["method"], route, status, request_id)
                self._note(scope, route, request_id, status, time.perf_counter() - begin, stages)
                STAGES.reset(token)

    def _route(self, path: str) -> str:
        """The route that a path is of, never the path itself: it may hold a document's id."""
        if path in self._routes:
            return path
        return next((route for prefix, route in self._prefixes.items() if path.startswith(prefix)), "other")

    def _note(
        self, scope: Scope, route: str, request_id: str, status: int, seconds: float, stages: dict[str, float]
    ) -> None:
        self._metrics.answered(route, status, seconds)
        if self._log is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": _milliseconds(seconds),
            **{f"{stage}_milliseconds": _milliseconds(one) for stage, one in stages.items()},
            "key": scope.get(KEY_ID),
        }
        self._log.info(json.dumps(line))


def is_usable_id(given: str) -> bool:
    """Whether a request can go by the id that its client gave it."""
    return _USABLE_ID.fullmatch(given) is not None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def open_log(path: str) -> logging.Logger:
    """A logger whose lines go to the end of a file and nowhere else. Raises UserError when it cannot be written."""
    log = logging.Logger(f"rayvec.access:{path}")
    try:
        log.addHandler(logging.FileHandler(Path(path).absolute(), encoding="utf-8"))
    except OSError as error:
        raise UserError(f"access_log {path} cannot be written ({error.strerror}); choose another file") from None
    return log
