"""A local Ray head with token authentication on, as `ray start` makes it, on free ports and in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class Head:
    """Where it is, and what a process needs to reach it."""

    dashboard: str
    gcs: str
    environment: dict[str, str]
    #: Of all its processes, as a group.
    group: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_ray_folder(folder: str) -> dict[str, str]:
    """The variable that keeps the address of a `ray.cluster_utils.Cluster` out of /tmp/ray: that is where others look
    for their cluster, and where no Ray has run yet it does not exist."""
    (Path(folder) / "ray").mkdir()
    return {"RAY_TMPDIR": folder}


def uv_takes_this_environment() -> dict[str, str]:
    """What keeps `uv run` on a node from making an environment over the network: the one of the tests, as it is."""
    return {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1"}


@contextlib.contextmanager
def head(**variables: str) -> Iterator[Head]:
    """Started, answering, and ended with all that it started; `variables` are added to its environment."""
    with tempfile.TemporaryDirectory(prefix="rj", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "DS_ACCELERATOR": "cpu",
            **variables,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        port, dashboard = free_port(), free_port()
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=4", f"--port={port}", f"--dashboard-port={dashboard}",
             f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
             f"--temp-dir={folder}/s",
             "--object-store-memory=200000000", "--disable-usage-stats"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(address, process)
            _wait_for_agent(address, token.read_text())
            yield Head(address, f"127.0.0.1:{port}", environment, process.pid)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head and all that it started: they are one process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None, "ray start ended early"
        try:
            httpx.get(f"{address}/api/gcs_healthz", timeout=2)
            return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError("the cluster's dashboard did not answer within two minutes")


def _wait_for_agent(address: str, token: str) -> None:
    """The head answers before its agent, which takes jobs, has started; on a busy machine long before."""
    for _ in range(240):
        answer = httpx.post(
            f"{address}/api/jobs/",
            json={"entrypoint": "true"},
            headers={"authorization": f"Bearer {token}"},
            timeout=60,
        )
        if answer.status_code == httpx.codes.OK:
            return
        assert "No available agent" in answer.text, answer.text
        time.sleep(1)
    raise AssertionError("the cluster's agent did not take a job within four minutes")
