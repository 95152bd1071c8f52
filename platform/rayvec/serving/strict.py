"""Reading a JSON body strictly: bounded in bytes and time while it streams, UTF-8, no NaN, no key twice, no depth that
breaks a parser.

Knows bytes and JSON. Knows no schema and no route.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from rayvec.serving.problems import Problem, from_validation

#: How long a body may take to arrive: one that is sent by half holds a connection, and a place in Serve's replica.
BODY_SECONDS = 10.0


def parse_json(body: bytes) -> Any:
    """The value of a JSON text. Raises Problem 400 for whatever is not strictly JSON.

    >>> parse_json(b'{"k": 3}')
    {'k': 3}
    """
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise _bad_json(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _bad_json("nested too deeply") from None
    except ValueError as error:
        raise _bad_json(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _bad_json(reason: str) -> Problem:
    return Problem(400, "invalid_json", f"the body is not valid JSON: {reason}")


class StrictRequest(Request):
    """A request whose body is read strictly. The limit is the application's `state.body_bytes`."""

    async def body(self) -> bytes:
        """The body, given up when it passes the limit, whatever length the client claimed, or does not arrive."""
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    self._body = await self._read(self.app.state.body_bytes)
            except TimeoutError:
                message = f"the body did not arrive within {BODY_SECONDS:g} s; send it again, or less at a time"
                raise Problem(408, "body_timeout", message, headers={"Connection": "close"}) from None
        return self._body

    async def _read(self, limit: int) -> bytes:
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > limit:
                message = f"the body has more than {limit} bytes; send less at a time"
                raise Problem(413, "body_too_large", message, headers={"Connection": "close"})
        return bytes(body)

    async def json(self) -> Any:
        """The body's value."""
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """A route that reads its body strictly. One with a body has a single model as its argument, and nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler where there is no body; else the body, checked by its model, goes to the endpoint.

        What FastAPI does besides for each request (to gather arguments, to read a form) no route with a body needs.
        """
        if self.body_field is None:
            return super().get_route_handler()
        (model,) = inspect.signature(self.endpoint, eval_str=True).parameters.values()
        schema: type[BaseModel] = model.annotation

        async def handler(request: Request) -> Response:
            _check_headers(request)
            value = await StrictRequest(request.scope, request.receive).json()
            try:
                asked = schema.model_validate(value)
            except ValidationError as error:
                raise from_validation(error.errors(include_url=False)) from None
            answer: Response = await self.endpoint(asked)
            return answer

        return handler


def _check_headers(request: Request) -> None:
    """JSON, not compressed: a small compressed body may unpack to gigabytes."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_encoding", "compressed bodies are not read; send the body as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "send JSON, with the header `Content-Type: application/json`")
