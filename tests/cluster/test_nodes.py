"""Several Ray nodes on this machine, with token authentication on: each job spread over them, and nodes lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from pipelines._ray import wait_for_room, worker_environment
from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from tests.buckets import s3_server
from tests.clusters import free_port, own_ray_folder
from tests.runs import config as train_config
from tests.runs import write_inputs

if TYPE_CHECKING:
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[2]
RECORDS = 4_000
CPUS = 3

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),
]


@dataclass
class Nodes:
    """A head that the drivers join, and three nodes that do the work."""

    cluster: Cluster
    folder: str
    environment: dict[str, str]
    workers: list[Node] = field(default_factory=list)

    def add(self) -> None:
        options = {"num_cpus": CPUS, "temp_dir": self.folder, "include_dashboard": False}
        self.workers.append(self.cluster.add_node(**options))

    def at_work(self, name: str) -> list[Node]:
        """The nodes on which a process whose name holds this is running."""
        return [node for node in self.workers if any(name in line for line in _children(node))]

    def lose(self, node: Node) -> None:
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def start(self, job: str, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            command = [sys.executable, "-m", f"jobs.{job}", *arguments]
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=out, stderr=out)


def _children(node: Node) -> list[str]:
    found = []
    for raylet in node.all_processes.get("raylet", []):
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(raylet.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    found.append(" ".join(child.cmdline()))
    # Ray's agents are called so too, and are always there.
    return [line for line in found if re.match(r"ray::(?!IDLE|\w+Agent\b)", line)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with (
        tempfile.TemporaryDirectory(prefix="rn", ignore_cleanup_errors=True) as short,
        pytest.MonkeyPatch.context() as patch,
    ):
        token = Path(short) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "DS_ACCELERATOR": "cpu"}
        for name, value in {**worker_environment(), **own_ray_folder(short), **own}.items():
            patch.setenv(name, value)
        # Not before: Ray reads how it authenticates when it is first imported.
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "temp_dir": short, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            found = Nodes(cluster, short, {**os.environ, "RAY_ADDRESS": cluster.address})
            for _ in range(3):
                found.add()
            yield found
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("nodes")
    words = [" ".join(f"word{(i * 7 + j) % 1000}" for j in range(5 + i % 60)) for i in range(RECORDS)]
    lines = [json.dumps({"id": f"d{i}", "text": f"document {i} {text}"}) for i, text in enumerate(words)]
    (home / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return home


def settings(**values: Any) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def watch(process: subprocess.Popen[bytes], log: Path, look: Callable[[], bool | None], seconds: float = 600) -> None:
    """Look again and again while it runs; it must end with 0. Stops looking once a look gives True."""
    end, looking = time.monotonic() + seconds, True
    try:
        while process.poll() is None and time.monotonic() < end:
            looking = looking and not look()
            time.sleep(0.02)
        assert process.poll() == 0, f"{process.poll()}:\n{log.read_text()[-4000:]}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_who_has_another_token_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    environment = {**nodes.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    code = f"import ray; ray.init(address='{nodes.cluster.address}')"
    refused = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=280)
    assert refused.returncode != 0
    assert "authentic" in refused.stderr.lower() or "token" in refused.stderr.lower(), refused.stderr[-2000:]


def test_embedding_on_three_nodes_loses_one(nodes: Nodes, folder: Path) -> None:
    log = folder / "embed.log"
    common = {"source__path": folder / "corpus.jsonl", "unit_rows": 64, "threads": 2, "actors": 3}
    seen: list[int] = []

    def lose_one() -> bool | None:
        there = nodes.at_work("EncodeUnit")
        seen.append(len(there))
        if len(there) == 3 and len([*(folder / "killed" / "units").glob("[0-9]*.json")]) >= 5:
            nodes.lose(there[-1])
            return True
        return None

    killed = nodes.start("embed", "--recipe", "hash.embed", *settings(**common, output=folder / "killed"), log=log)
    watch(killed, log, lose_one)
    assert len(nodes.workers) == 2, f"no node was lost; encoders were seen on {max(seen)} nodes"
    nodes.add()
    alone = nodes.start("embed", "--recipe", "hash.embed", *settings(**common, output=folder / "alone"), log=log)
    watch(alone, log, lambda: True)
    both = [storage.read_json(folder / name / "manifests" / "v1.json") for name in ("killed", "alone")]
    assert both[0] == both[1]
    assert EmbeddingsDataset.open(str(folder / "killed")).count == RECORDS


def test_an_index_is_built_on_three_nodes(nodes: Nodes, folder: Path) -> None:
    log, seen = folder / "index.log", set[int]()
    values = {"embeddings": folder / "alone", "output": folder / "index", "factory": "IVF16,SQ8", "shards": 6}
    build = nodes.start("index", "--recipe", "hash.index", *settings(**values), log=log)
    watch(build, log, lambda: seen.update(map(id, nodes.at_work("ray::"))))
    assert len(seen) == 3, f"tasks were seen on {len(seen)} nodes"
    verify = nodes.start("index", "--verify", str(folder / "index"), log=log)
    watch(verify, log, lambda: True)


def test_an_index_in_a_bucket_is_built_where_its_driver_is(
    nodes: Nodes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, seen = folder / "bucket.log", set[int]()
    with s3_server(monkeypatch) as bucket:
        there = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        driver = replace(nodes, environment=nodes.environment | there | {"XDG_CACHE_HOME": str(folder / "cache")})
        values = {"embeddings": folder / "alone", "output": f"{bucket}/index", "factory": "IVF16,SQ8", "shards": 6}
        build = driver.start("index", "--recipe", "hash.index", *settings(**values), log=log)
        watch(build, log, lambda: seen.update(map(id, nodes.at_work("ray::"))))
        assert len(seen) <= 1, "tasks were seen on other nodes than the driver's, which may be any of this machine's"
        verify = driver.start("index", "--verify", f"{bucket}/index", log=log)
        watch(verify, log, lambda: True)


def test_training_has_its_workers_on_two_nodes(nodes: Nodes, folder: Path) -> None:
    run = train_config(write_inputs(folder / "in"), folder / "run", workers=2, cpus_per_worker=CPUS, steps=6)
    (folder / "run.yaml").write_text(run.to_yaml())
    log, seen = folder / "train.log", set[int]()
    training = nodes.start("train", "--config", str(folder / "run.yaml"), log=log)
    watch(training, log, lambda: seen.update(map(id, nodes.at_work("RayTrainWorker"))))
    assert len(seen) == 2
    assert storage.read_json(folder / "run" / "report.json")["workers"] == 2


def test_a_service_on_two_nodes_outlives_one(nodes: Nodes, folder: Path) -> None:
    log, port = folder / "serve.log", free_port()
    replicas = {"gateway": 2, "encoder": 2, "encoder_cpus": 2, "retriever": 2}
    values = {"index": folder / "index", "port": port, **{f"replicas__{name}": n for name, n in replicas.items()}}
    service = nodes.start("serve", "--recipe", "hash.serve", *settings(**values), log=log)
    url = f"http://127.0.0.1:{port}"

    def ask() -> int:
        try:
            answer = httpx.post(f"{url}/v1/search", json={"query": "document 7", "k": 3}, timeout=30, trust_env=False)
        except httpx.TransportError:
            return 0
        return answer.status_code

    try:
        end = time.monotonic() + 180
        while ask() != 200 and time.monotonic() < end:
            assert service.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        holding = nodes.at_work("ServeReplica:rayvec:QueryEncoder")
        assert len(holding) == 2
        answers = [ask() for _ in range(20)]
        nodes.lose(holding[0])
        lost = time.monotonic()
        while time.monotonic() < lost + 90 and answers[-30:] != [200] * 30:
            answers.append(ask())
            time.sleep(0.1)
        failed, after = len([answer for answer in answers if answer != 200]), time.monotonic() - lost
        print(f"{len(answers)} asked, {failed} failed, whole after {after:.1f} s")
        assert answers[:20] == [200] * 20 and answers[-30:] == [200] * 30
        nodes.add()
    finally:
        service.terminate()
        assert service.wait(90) == 0, log.read_text()[-3000:]


def test_what_is_waited_for_is_asked_of_the_autoscaler_and_seen_when_it_comes(nodes: Nodes) -> None:
    """The test stands for the autoscaler: it finds the request where Ray's reads it, and adds a node."""
    import ray
    from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    def asked() -> Any:
        return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"[]")

    ray.init(nodes.cluster.address, log_to_driver=False)
    try:
        end = time.monotonic() + 90
        while ray.cluster_resources()["CPU"] > 1 + CPUS * len(
            nodes.workers
        ):  # one was lost before: until that is noticed
            assert time.monotonic() < end, ray.cluster_resources()
            time.sleep(0.5)
        bundles = [{"CPU": float(CPUS), "GPU": 0.0}] * (len(nodes.workers) + 1)
        found: list[bool] = []
        waiting = threading.Thread(target=lambda: found.append(wait_for_room(bundles, 240)), daemon=True)
        waiting.start()
        end = time.monotonic() + 60
        while asked() != bundles:
            assert time.monotonic() < end and not found, asked()
            time.sleep(0.1)
        nodes.add()
        waiting.join(timeout=240)
        assert found == [True]
        assert asked() == []
    finally:
        ray.shutdown()
