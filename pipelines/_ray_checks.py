"""What of Ray would endanger a run: its version and switches, secrets given to it, and who may reach it.

Looks and asks, and changes nothing. Knows no model, no index.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from packaging.version import Version

from pipelines._finding import CLOCK_S, Finding
from rayvec.serving.config import is_loopback

#: Switches that make Ray unpickle what it finds in files; never set where we run.
UNSAFE_SWITCHES = (
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
)
#: Where Ray tells a submitted job its runtime environment.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Names of variables that hold a secret; not those that name a file of them, nor Ray's own. MAX_TOKENS holds none.
SECRET = re.compile(
    r"(?!RAY_|GOOGLE_APPLICATION_CREDENTIALS$)(?!.*_(FILE|PATH|DIR)$)"
    r".*(TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL)"
)
#: Set to 1, jobs join a Ray that runs code for whoever reaches it from another machine.
ALLOW_OPEN = "RAYVEC_ALLOW_OPEN_RAY"
#: Before it, Parquet files and web datasets could run code (CVE-2026-41486, CVE-2026-57516).
RAY_FLOOR = Version("2.56")


def quick() -> list[Finding]:
    """The errors that can be seen in a millisecond: what every job looks at before it starts Ray."""
    return [*ray_version(), *switches(), *secrets()]


def ray_version() -> Iterator[Finding]:
    """Errors only: Ray is missing, or old enough to be unsafe."""
    try:
        found = Version(importlib.metadata.version("ray"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("error", "Ray is not installed", "pip install -c constraints.txt .")
        return
    if found < RAY_FLOOR:
        yield Finding(
            "error", f"Ray {found} runs code that lies in data files", "install the pinned one: -c constraints.txt"
        )


def switches() -> Iterator[Finding]:
    """Environment variables that must not be set."""
    for name in UNSAFE_SWITCHES:
        if os.environ.get(name, "0") not in ("", "0", "false", "False"):
            yield Finding("error", f"{name} lets Ray run code that lies in data files", "unset it")
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        yield Finding(
            "warning", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code here", "set it to token"
        )


def secrets() -> Iterator[Finding]:
    """Secrets in the runtime environment of the submitted job that this is; told by name, never by value."""
    job = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    for name in sorted(name for name, value in given.items() if value and SECRET.match(name.upper())):
        yield Finding(
            "error",
            f"{name} is in the job's runtime environment, which Ray shows in its API and writes to its logs",
            "replace that secret, and give the new one as a file that is mounted on the nodes, or in their environment",
        )


def joined(dashboard: str | None) -> Iterator[Finding]:
    """Whether the Ray that is joined runs code for whoever reaches it, and whether another machine can. Ray must run.

    dashboard: its host and port; without one, or where it says neither, what this process was told counts.
    """
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    status, _ = (_status(f"http://{dashboard}/api/version") if dashboard else None) or (0, None)
    if status in (401, 403) or (status != 200 and is_token_auth_enabled()):
        return
    # Ray listens on every interface of a node, whatever its dashboard does.
    nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    reached = sorted(node for node in nodes if not is_loopback(node))
    if not reached:
        yield Finding("warning", "this Ray runs code for whoever asks on this machine", "start it with a token")
        return
    more = f" and {len(reached) - 1} more" if len(reached) > 1 else ""
    yield Finding(
        "warning" if os.environ.get(ALLOW_OPEN) == "1" else "error",
        f"the Ray at {reached[0]}{more} runs code for whoever reaches its ports, and asks for no token",
        "stop it; ray get-auth-token --generate; start it with RAY_AUTH_MODE=token; or, where nobody else reaches that "
        f"network, set {ALLOW_OPEN}=1",
    )


def authentication(address: str = "") -> Iterator[Finding]:
    """Whether a Ray that runs here, or at the address, takes jobs from whoever asks, and from where it can be asked."""
    asked = {address} if address else {f"http://{_asked(host)}:{port}" for host, port in _dashboards()}
    for url in sorted(asked):
        answer = _status(f"{url}/api/version")
        if answer is None:
            if address:
                yield Finding("error", f"no Ray dashboard answers at {url}", "start Ray, or give another --address")
            continue
        status, date = answer
        reach = (
            "" if is_loopback(url.partition("//")[2].rpartition(":")[0].strip("[]")) else ", from other machines too"
        )
        if status == 401:
            yield Finding("note", f"Ray's job API at {url} asks for a token")
        elif status == 200:
            yield Finding(
                "error" if reach else "warning",
                f"Ray's job API at {url} runs code for whoever asks{reach}",
                "stop Ray; ray get-auth-token --generate; start it with RAY_AUTH_MODE=token",
            )
        yield from _clock(url, date)
    exposed = sorted(f"{host}:{port}" for host, port in _dashboards() if not is_loopback(host))
    if exposed:
        yield Finding(
            "warning",
            f"Ray's dashboard listens at {', '.join(exposed)}",
            "start Ray with --dashboard-host=127.0.0.1, or keep its port from others by a firewall or NetworkPolicy",
        )


def token_file() -> Iterator[Finding]:
    """Whether others of this machine may read Ray's token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding("warning", f"{path} can be read by other users of this machine", f"chmod 600 {path}")


def _clock(url: str, date: str | None) -> Iterator[Finding]:
    if date is None:
        return
    off = parsedate_to_datetime(date).timestamp() - time.time()
    if abs(off) > CLOCK_S:
        yield Finding("warning", f"the clock at {url} is {off:+.0f} s off this machine's", "let both follow NTP")


def _status(url: str) -> tuple[int, str | None] | None:
    """The status without any token, and the Date header; None when nobody answers."""
    import httpx

    try:
        answer = httpx.get(url, timeout=3, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol):
        return None
    return answer.status_code, answer.headers.get("date")


def _dashboards() -> set[tuple[str, int]]:
    """Where the dashboards of Rays on this machine listen, as far as their processes can be seen."""
    import psutil

    found: set[tuple[str, int]] = set()
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if not any(part.endswith("dashboard/dashboard.py") for part in line):
            continue
        given = {part.partition("=")[0]: part.partition("=")[2] for part in line}
        if given.get("--port", "").isdigit():
            found.add((given.get("--host", "127.0.0.1"), int(given["--port"])))
    return found


def _asked(host: str) -> str:
    return f"[{host}]" if ":" in host else host
