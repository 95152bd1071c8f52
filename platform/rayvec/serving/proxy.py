"""Which proxy takes connections for Ray Serve, and the settings and leftovers of HAProxy, which comes with Ray.

Knows the environment variables that Serve reads when it is imported. Knows no deployment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from rayvec.errors import UserError
from rayvec.serving.config import ServeConfig

ENABLE = "RAY_SERVE_ENABLE_HA_PROXY"
#: What HAProxy listens on besides, by the variable that sets it: its statistics, and its metrics.
PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
#: Its files, by the variable that names each. Serve would put them where every user of the machine may reach them, and
#: one is the socket by which HAProxy is ruled.
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
SETTINGS = {
    ENABLE: "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Where there is no room, a request is refused before Serve writes it into its books.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rayvec.serving.door:middlewares",
    # A line of each request to one of Serve's actors, which parses it: a quarter of a millisecond of CPU a request, for
    # numbers that the gateway's own /metrics has.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Serve's 4 are for machines that have cores to spare.
    "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, len(os.sched_getaffinity(0)) // 2))),
    # Serve's 30 s at the end are for balancers that must hear of it first; this HAProxy is told at once.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Serve lets a client be silent for an hour; some thousands that are would leave no room for others.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}
END_SECONDS = 5.0


def check(config: ServeConfig) -> None:
    """Raise UserError where a proxy is chosen from outside that listens on every interface, and there are no keys."""
    if config.proxy != "haproxy" and os.environ.get(ENABLE, "0") not in ("", "0") and not config.keys:
        raise UserError(f"{ENABLE}=1 listens on every interface, whatever host says; set keys= too")


def require(config: ServeConfig) -> None:
    """Raise UserError where HAProxy is asked for, and the Serve of the Ray that runs would start its own proxy.

    Serve reads the variable in its own processes, which have their node's environment, as this one has.
    """
    if config.proxy == "haproxy" and os.environ.get(ENABLE) != "1":
        raise UserError(
            f"proxy=haproxy is chosen where Ray starts: set {ENABLE}=1 in the environment of every node "
            "(infra/kuberay/service.yaml does), or keep proxy=python"
        )


@contextlib.contextmanager
def chosen(config: ServeConfig) -> Iterator[None]:
    """Around a Ray of our own, and before Serve is imported: choose the proxy; at the end nothing of it is left."""
    if config.proxy != "haproxy":
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        require(config)
        yield
        return
    # Paths of Unix sockets may not pass 107 bytes, of which the id of a node takes 56.
    with tempfile.TemporaryDirectory(prefix="rv", ignore_cleanup_errors=True) as folder:
        settings = SETTINGS | {name: str(Path(folder, file)) for name, file in FILES.items()}
        settings |= {name: str(_free_port(usual)) for name, usual in PORTS.items() if name not in os.environ}
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        os.environ[ENABLE] = "1"
        try:
            yield
        finally:
            _end(folder)


def _free_port(usual: int) -> int:
    """The usual port, or another where it is taken: by a second service on this machine, say."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", usual))
        except OSError:
            probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _end(folder: str) -> None:
    """End what runs from a folder: one that Serve was just starting when Ray ended belongs to nobody, and stays."""
    left = [
        one for one in psutil.process_iter(["cmdline"]) if any(folder in part for part in one.info["cmdline"] or ())
    ]
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    for one in psutil.wait_procs(left, END_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
