"""`serve deploy` of the files in infra/ to a Ray head with a token: what they configure starts, and answers."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from pipelines._ray import worker_environment
from rayvec import Client
from rayvec.serving import proxy
from rayvec.serving.security import new_key
from tests.artifacts import texts_for
from tests.clusters import RAY, Head, free_port, head
from tests.services import COUNT, write_service_index

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SERVE = str(Path(RAY).with_name("serve"))
SECONDS = 240


def serve(cluster: Head, verb: str, *arguments: str) -> str:
    command = [SERVE, verb, "--address", cluster.dashboard, *arguments]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@contextlib.contextmanager
def deployed(cluster: Head, values: dict[str, Any], folder: Path) -> Iterator[None]:
    """From when `serve status` says that the application runs until the block ends."""
    (folder / "serve.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    serve(cluster, "deploy", str(folder / "serve.yaml"))
    try:
        end = time.monotonic() + SECONDS
        while (found := status(cluster))["status"] != "RUNNING":
            assert found["status"] != "DEPLOY_FAILED" and time.monotonic() < end, found["message"]
            time.sleep(1)
        yield
    finally:
        serve(cluster, "shutdown", "--yes")


def status(cluster: Head) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(serve(cluster, "status"))["applications"]["rayvec"]
    return found


def at_home(values: dict[str, Any], index: Path, **arguments: Any) -> str:
    """Put the index of the test and a free port into a configuration, and give its address."""
    port = free_port()
    values["http_options"]["port"] = port
    values["applications"][0]["args"] |= {"index": str(index), "port": port, **arguments}
    return f"http://127.0.0.1:{port}"


def test_the_configuration_of_infra_is_deployed_and_answers(tmp_path: Path) -> None:
    write_service_index(tmp_path / "index")
    values = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text(encoding="utf-8"))
    address = at_home(values, tmp_path / "index")
    with head(PYTHONPATH=worker_environment()["PYTHONPATH"]) as cluster:
        with deployed(cluster, values, tmp_path):
            assert set(status(cluster)["deployments"]) == {"Gateway", "QueryEncoder", "Retriever"}
            with Client(address) as client:
                assert client.search(texts_for(COUNT)[3], k=1).results[0].hits[0].id == "doc-3"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/ready", timeout=5)


def test_the_service_of_kubernetes_is_behind_haproxy_and_asks_for_a_key(tmp_path: Path) -> None:
    """With the environment of its pods: what is Kubernetes' own (pods, volumes, limits) is not here."""
    write_service_index(tmp_path / "index")
    key, line = new_key("alice")
    (tmp_path / "keys.txt").write_text(line)
    service = yaml.safe_load((ROOT / "infra" / "kuberay" / "service.yaml").read_text(encoding="utf-8"))["spec"]
    (container,) = service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    pod = {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("RAY_SERVE_")}
    values = yaml.safe_load(service["serveConfigV2"])
    # Of its copies, which are for two machines of four cores, one each.
    address = at_home(values, tmp_path / "index", keys=str(tmp_path / "keys.txt"), replicas={"threads": 1})
    before = haproxies()
    with tempfile.TemporaryDirectory(prefix="rh", ignore_cleanup_errors=True) as short:
        own = {name: str(Path(short, file)) for name, file in proxy.FILES.items()}
        own |= {name: str(free_port()) for name in proxy.PORTS}
        own |= {"PYTHONPATH": worker_environment()["PYTHONPATH"]}
        with head(**pod, **own) as cluster, deployed(cluster, values, tmp_path):
            assert haproxies() - before
            end = time.monotonic() + SECONDS  # as the pods' readiness probe asks
            while httpx.get(f"{address}/-/healthz", timeout=5).status_code != httpx.codes.OK:
                assert time.monotonic() < end
                time.sleep(0.5)
            assert httpx.post(f"{address}/v1/search", json={"query": "a"}, timeout=30).status_code == 401
            with Client(address, api_key=key) as client:
                assert client.search(texts_for(COUNT)[3], k=1).results[0].hits[0].id == "doc-3"
    assert haproxies() == before


def test_haproxy_is_refused_where_the_nodes_have_not_chosen_it(tmp_path: Path) -> None:
    write_service_index(tmp_path / "index")
    (tmp_path / "keys.txt").write_text(new_key("alice")[1])
    values = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text(encoding="utf-8"))
    at_home(values, tmp_path / "index", keys=str(tmp_path / "keys.txt"), proxy="haproxy")
    with (
        head(PYTHONPATH=worker_environment()["PYTHONPATH"]) as cluster,
        pytest.raises(AssertionError, match=f"set {proxy.ENABLE}=1 in the environment of every node"),
        deployed(cluster, values, tmp_path),
    ):
        pass


def haproxies() -> set[int]:
    return {one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == "haproxy"}
