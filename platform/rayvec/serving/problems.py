"""What a client can be told went wrong, in the shape OpenAI's clients read: {"error": {message, type, code, param}}.

Knows HTTP statuses and wording. Knows no route, no model, no index; never carries a trace, a path or a user's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

#: Type by status class, as OpenAI names them.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

#: Of an unknown field's name, as many characters are repeated.
MAX_NAME = 64

#: Wording of errors that would name our own classes, by pydantic's name for them.
_WORDING = dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "should be a JSON object")

#: Code for a status that the framework raises itself.
_CODES = {404: "not_found", 405: "method_not_allowed"}

#: Code of a search whose vectors are of another encoder than the index's.
ENCODER_CHANGED = "encoder_changed"


class Problem(HTTPException):
    """An answer that is an error. Plain values only, so that it survives the way between Ray's processes."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail=message, headers=dict(headers or {}))
        self.code = code
        self.param = param

    def __reduce__(self) -> tuple[type[Problem], tuple[Any, ...]]:
        return type(self), (self.status_code, self.code, self.detail, self.param, self.headers)


def overloaded(retry_after: int = 1) -> Problem:
    """429: the queue is full. The client should wait `retry_after` seconds."""
    message = "the service is at its limit of requests; try again shortly"
    return Problem(429, "overloaded", message, headers={"Retry-After": str(retry_after)})


def unavailable(message: str, code: str = "unavailable", retry_after: int = 1) -> Problem:
    """503: a part of the service does not answer now, but is expected back."""
    return Problem(503, code, message, headers={"Retry-After": str(retry_after)})


def stopping() -> Problem:
    """503: the service ends, and takes nothing new. On a new connection a client may find another copy of it."""
    message = "the service is stopping; ask again, of another copy of it or when it is back"
    return Problem(503, "stopping", message, headers={"Retry-After": "1", "Connection": "close"})


def internal_error() -> Problem:
    """500: an error of ours. What it was is for the log, since its text may hold the user's."""
    return Problem(500, "internal_error", "the service failed on this request; its log has the details")


def invalid(message: str, param: str | None, code: str = "invalid_value") -> Problem:
    """422: well-formed, but not something that can be answered."""
    return Problem(422, code, message, param)


def to_response(problem: HTTPException) -> JSONResponse:
    """The answer for a problem, or for one of the framework's own HTTP errors."""
    status = problem.status_code
    code = getattr(problem, "code", _CODES.get(status, "invalid_request"))
    body = {
        "message": str(problem.detail),
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "code": code,
        "param": getattr(problem, "param", None),
    }
    return JSONResponse({"error": body}, status, headers=problem.headers)


def from_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """One line for the first thing that is wrong with a request: the field, what is wrong, what is allowed.

    Places (`loc`) begin at the field.
    """
    first = errors[0]
    # A choice between types (text, list of texts, …) adds its own tag to the place; a client knows only the fields.
    place = [str(part) for part in first["loc"] if not _is_tag(part)]
    param = shown_name(".".join(place)) or None
    message = _WORDING.get(first["type"], str(first["msg"])).removeprefix("Value error, ")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    code = "missing_field" if first["type"] == "missing" else "invalid_value"
    code = "unknown_field" if first["type"] == "extra_forbidden" else code
    return invalid(f"{param or 'body'}: {message[:1].lower()}{message[1:]}{more}", param, code)


def shown_name(name: str) -> str:
    """A field's name is the client's own where it is unknown: any length, and not always text."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…"


def _is_tag(part: object) -> bool:
    return isinstance(part, str) and part.startswith("<")
