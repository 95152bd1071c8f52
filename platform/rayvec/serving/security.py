"""Who may ask: API keys, hashed where they lie and compared in constant time; and a guard around the whole interface.

    python -m rayvec.serving.security keys.txt alice     makes a key, shows it once, and adds its hash to the file

A line of the file is `id:sha256`; several keys are valid at once, so that one can be replaced without a break. Knows
keys, hosts and headers. Knows no route, no model, no index.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayvec.errors import UserError
from rayvec.serving.config import is_loopback
from rayvec.serving.problems import Problem, to_response

#: Everything but these asks for a key, where keys are set.
OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/health", "/ready"})

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64})")


class Keys:
    """The keys that are valid, by id, as SHA-256 digests. A key has 256 random bits, so a plain hash keeps it."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = {name: bytes.fromhex(digest) for name, digest in digests.items()}

    @classmethod
    def load(cls, path: str | Path) -> Keys:
        """Read a keys file. Raises UserError when it is missing, holds no key, or has a line that is none."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"keys file {path} cannot be read ({error}); {_how_to_make(path)}") from None
        digests: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise UserError(f"keys file {path}, line {number} is not `id:sha256`; {_how_to_make(path)}")
            digests[match[1]] = match[2]
        if not digests:
            raise UserError(f"keys file {path} holds no key; {_how_to_make(path)}")
        return cls(digests)

    def owner(self, key: str) -> str | None:
        """The id of a key, or None. Every digest is compared, so that the time tells nothing about which matched."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and the line that stands for it in a keys file."""
    if not _LINE.fullmatch(f"{name}:{'0' * 64}"):
        raise UserError(f"{name!r} cannot be a key's id; use up to 64 letters, digits, dots, dashes and underscores")
    key = f"rv-{secrets.token_urlsafe(32)}"
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


def _how_to_make(path: str | Path) -> str:
    return f"make a key with `python -m rayvec.serving.security {path} NAME`"


class Guard:
    """Around the whole interface: checks host and key before anything of a body is read, and adds security headers.

    A service that listens on loopback answers only to loopback names: a page on the web whose name was pointed to
    127.0.0.1 (DNS rebinding) would otherwise read the index through the user's browser.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, *, loopback_only: bool) -> None:
        self._app = app
        self._keys = keys
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        problem = self._problem(scope["path"], Headers(scope=scope))
        answer = self._app if problem is None else to_response(problem)
        await answer(scope, receive, send_with_headers)

    def _problem(self, path: str, headers: Headers) -> Problem | None:
        if self._loopback_only and not is_loopback(_host_name(headers.get("host", ""))):
            message = (
                "this service listens on loopback only, and answers to localhost and 127.0.0.1; see host= and keys="
            )
            return Problem(403, "host_not_allowed", message)
        if self._keys is None or path in OPEN_PATHS:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._keys.owner(key.strip()):
            return None
        message = "no valid API key; send the header `Authorization: Bearer KEY`"
        return Problem(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets.

    >>> _host_name("localhost:8000"), _host_name("[::1]:8000"), _host_name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m rayvec.serving.security KEYS_FILE NAME\n")
        return 2
    path, name = Path(arguments[0]), arguments[1]
    try:
        key, line = new_key(name)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line)
    sys.stdout.write(f"{key}\n")
    sys.stderr.write(f"the key of {name}, shown only now; {path} holds its hash\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
