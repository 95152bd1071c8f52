"""Who may ask: API keys, hashed where they lie and compared in constant time; and a guard around the whole interface.

    python -m rayvec.serving.security keys.txt alice                          makes a key, shows it once, keeps its hash
    python -m rayvec.serving.security keys.txt loader --scope read --scope write --rate 600

A line of the file is `id:sha256:scopes`, or `id:sha256:scopes:rate` with a rate in requests a minute. Several keys are
valid at once, also under one id, so that one can be replaced without a break; a changed file counts within half a
second. Knows keys, hosts and headers. Knows no model, no index, and of the routes only which of them write.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import click
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayvec.errors import UserError
from rayvec.serving.config import is_loopback
from rayvec.serving.observer import KEY_ID
from rayvec.serving.pages import PAGE
from rayvec.serving.paths import path_of
from rayvec.serving.problems import Problem, to_response

Access = Literal["read", "write"]

#: Everything but these asks for a key, where keys are set.
OPEN_PATHS = frozenset({*PAGE, "/health", "/ready"})
#: What changes the index, and so asks for a key that may.
WRITING_PATHS = ("/v1/documents",)

#: As ASGI has them; no route sets one of its own.
SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
#: How often the keys file is looked at, at most.
LOOK_SECONDS = 0.5

_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64}):(read|write|read,write)(?::([1-9][0-9]{0,6}))?")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """A valid key: its id, its SHA-256 digest, what it may do, and how often a minute (None: as often as it likes)."""

    name: str
    digest: bytes
    scopes: frozenset[Access] = frozenset({"read"})
    per_minute: int | None = None


class Keys:
    """The keys that are valid. A key has 256 random bits, so a plain hash keeps it."""

    def __init__(self, keys: list[Key], path: Path | None = None) -> None:
        self._keys = keys
        self._path = path
        self._seen = _stamp(path)
        self._looked = time.monotonic()

    @classmethod
    def load(cls, path: str | Path) -> Keys:
        """Read a keys file. Raises UserError when it is missing, holds no key, or has a line that is none."""
        return cls(_read(path), Path(path))

    def owner(self, key: str) -> Key | None:
        """Whose key it is, or None. Every digest is compared, so that the time tells nothing about which matched."""
        self._look_again()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def _look_again(self) -> None:
        """Take the file as it is now, if it was changed; one that cannot be read leaves the keys as they were."""
        if (now := time.monotonic()) - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if self._path is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = _read(self._path)
        except UserError as error:
            _LOG.warning("%s; the keys stay as they were", error)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        return None if path is None else (path.stat().st_mtime_ns, path.stat().st_ino)
    except OSError:
        return None


def _read(path: str | Path) -> list[Key]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"keys file {path} cannot be read ({error}); {_how_to_make(path)}") from None
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        key = parse_line(line)
        if key is None:
            raise UserError(f"keys file {path}, line {number} is not `id:sha256:scopes`; {_how_to_make(path)}")
        keys.append(key)
    if not keys:
        raise UserError(f"keys file {path} holds no key; {_how_to_make(path)}")
    return keys


def parse_line(line: str) -> Key | None:
    """A line of a keys file; None when it is none."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        return None
    scopes = cast(frozenset[Access], frozenset(match[3].split(",")))
    return Key(match[1], bytes.fromhex(match[2]), scopes, int(match[4]) if match[4] else None)


def new_key(name: str, scopes: tuple[Access, ...] = ("read",), per_minute: int | None = None) -> tuple[str, str]:
    """A fresh key, and the line that stands for it in a keys file. Raises UserError."""
    key = f"rv-{secrets.token_urlsafe(32)}"
    rate = f":{per_minute}" if per_minute else ""
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}:{','.join(sorted(set(scopes)))}{rate}\n"
    if parse_line(line) is None or "\n" in name:
        raise UserError(f"{name!r} cannot be a key's id; use up to 64 letters, digits, dots, dashes and underscores")
    return key, line


def _how_to_make(path: str | Path) -> str:
    return f"make a key with `python -m rayvec.serving.security {path} NAME`"


class Rates:
    """How often each key has asked in the last minute; of this process alone."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def refused(self, key: Key) -> int | None:
        """Count a request. None if it may pass, else the seconds to wait."""
        if key.per_minute is None:
            return None
        item = RateLimitItemPerMinute(key.per_minute)
        if self._limiter.hit(item, key.name):
            return None
        return max(1, round(self._limiter.get_window_stats(item, key.name).reset_time - time.time()))


class Guard:
    """Around the whole interface: checks host and key before anything of a body is read, and adds security headers.

    loopback_only: answer to this machine alone. Listening on loopback is not enough: a page on the web whose name was
    pointed to 127.0.0.1 (DNS rebinding) would read the index through the user's browser, and a Serve that runs already
    may listen on every interface, whatever host this service is told.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, *, loopback_only: bool) -> None:
        self._app = app
        self._keys = keys
        self._rates = Rates()
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        problem = self._problem(scope, Headers(scope=scope))
        answer = self._app if problem is None else to_response(problem)
        await answer(scope, receive, send_with_headers)

    def _problem(self, scope: Scope, headers: Headers) -> Problem | None:
        if self._loopback_only and not _is_from_here(scope, headers):
            message = (
                "this service has no API keys, and answers to this machine alone, as localhost or 127.0.0.1; "
                "see host= and keys="
            )
            return Problem(403, "host_not_allowed", message)
        path = path_of(scope)
        if self._keys is None or path in OPEN_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = self._keys.owner(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            message = "no valid API key; send the header `Authorization: Bearer KEY`"
            return Problem(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
        scope[KEY_ID] = key.name
        needed: Access = "write" if _writes(scope["method"], path) else "read"
        if needed not in key.scopes:
            return Problem(403, "key_not_allowed", f"this API key has no {needed} scope; use one that has")
        wait = self._rates.refused(key)
        if wait is None:
            return None
        message = f"this API key may ask {key.per_minute} times a minute; wait {wait} s"
        return Problem(429, "rate_limited", message, headers={"Retry-After": str(wait)})


def _writes(method: str, path: str) -> bool:
    return method not in ("GET", "HEAD") and any(path == root or path.startswith(f"{root}/") for root in WRITING_PATHS)


def _is_from_here(scope: Scope, headers: Headers) -> bool:
    """Whether who asks is on this machine (without an address: over a socket of its files), and knows it as such."""
    peer = scope.get("client")
    return is_loopback(_host_name(headers.get("host", ""))) and (peer is None or is_loopback(peer[0]))


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets.

    >>> _host_name("localhost:8000"), _host_name("[::1]:8000"), _host_name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


@click.command(help="Make an API key: it is shown once, and its hash is added to KEYS_FILE.")
@click.argument("keys_file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(get_args(Access)),
    multiple=True,
    default=("read",),
    help="read (the default) or write, which alone may not read; given twice, both",
)
@click.option("--rate", type=click.IntRange(1, 9_999_999), help="requests a minute; without it there is no limit")
def command(keys_file: Path, name: str, scopes: tuple[Access, ...], rate: int | None) -> None:
    """Make an API key."""
    try:
        key, line = new_key(name, scopes, rate)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    keys_file.touch(mode=0o600)
    with keys_file.open("a", encoding="utf-8") as stream:
        stream.write(line)
    click.echo(key)
    click.echo(f"the key of {name}, shown only now; {keys_file} holds its hash", err=True)


if __name__ == "__main__":
    command()
