"""Before the framework: a request with a body goes straight to its route's handler.

Between the two lie a dozen middlewares and routers, which none of these routes needs, and whose code an encoder's work
has pushed out of the CPU's caches by the time that the next request comes. Knows ASGI and routes. Knows no schema, no
model, no index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from rayvec.serving.paths import path_of
from rayvec.serving.problems import internal_error, to_response
from rayvec.serving.strict import StrictRoute

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI
    from starlette.types import Receive, Scope, Send


class Shortcut:
    """Answers the routes of these routers that have a body; what else there is goes to the framework's application."""

    def __init__(self, app: FastAPI, *routers: APIRouter) -> None:
        self._app = app
        self._handlers = {
            (method, route.path): route.get_route_handler()
            for router in routers
            for route in router.routes
            if isinstance(route, StrictRoute) and route.body_field is not None
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        handler = self._handlers.get((scope["method"], path_of(scope))) if scope["type"] == "http" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        try:
            response = await handler(Request(scope, receive))
        except HTTPException as error:
            response = to_response(error)
        except ClientDisconnect:
            return
        except Exception:
            await to_response(internal_error())(scope, receive, send)
            raise  # for the log
        await response(scope, receive, send)
