"""Room in a cluster that an autoscaler makes, and what embedding and training runs tell Prometheus."""

from __future__ import annotations

import time
import urllib.request

import pytest

from pipelines._ray import holds, wait_for_room
from rayvec.encoding.metrics import RunMetrics
from rayvec.encoding.sink import Record
from rayvec.encoding.spent import Spent
from rayvec.training.loop import Progress
from rayvec.training.metrics import RunMetrics as TrainingMetrics

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings(r"ignore::Warning:ray\.")]


def test_room_that_is_there_is_not_waited_for(ray_cluster: None) -> None:
    began = time.monotonic()
    assert wait_for_room([{"CPU": 2.0, "GPU": 0.0}] * 2, 60)
    assert time.monotonic() - began < 10


def test_waiting_for_room_has_an_end(ray_cluster: None) -> None:
    assert not wait_for_room([{"CPU": 1.0, "GPU": 1.0}], 1)


def test_a_bundle_needs_one_node() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 3.0, "GPU": 1.0}]
    assert holds(nodes, [{"CPU": 3.0}] * 2) and holds(nodes, [{"CPU": 1.0}] * 7)
    assert not holds(nodes, [{"CPU": 5.0}]) and not holds(nodes, [{"CPU": 3.0, "GPU": 1.0}] * 2)


def exported(prefix: str, count: int) -> dict[str, float]:
    """What the agent of the node tells Prometheus of a run at /data/out, once it tells so much, by name and tag."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    values: dict[str, float] = {}
    end = time.monotonic() + 90
    while time.monotonic() < end and len(values) < count:
        for line in urllib.request.urlopen(url, timeout=10).read().decode().splitlines():
            if line.startswith(prefix):
                name, _, value = line.rpartition(" ")
                labels = dict(
                    part.split("=", 1) for part in name.partition("{")[2].rstrip("}").split(",") if "=" in part
                )
                assert labels["output"].endswith('xe4rz"')
                told = labels.get("outcome") or labels.get("reason") or labels.get("step") or ""
                values[name.partition("{")[0] + told.replace('"', ":")] = float(value)
        time.sleep(1)
    return values


def test_a_run_is_told_to_prometheus(ray_cluster: None) -> None:
    record = Record(
        unit="000000", file="data/000000.parquet", rows=7, documents=7, bytes=100, sha256="0" * 64, quarantined=2,
        duplicates=1, truncated=0, tokens=500, lengths=(), lengths_truncated=(), id_digest="",
        reasons={"empty_text": 2}, quarantine_sha256=None,
    )  # fmt: skip
    metrics = RunMetrics("/data/März", units=4, done=1)  # Ray takes ASCII alone
    metrics.add(record, Spent(read=1.0, encode=3.0, tokens=500, places=500))
    values = exported("ray_rayvec_embed", 8)
    prefix = "ray_rayvec_embed_"
    assert {name.removeprefix(prefix): value for name, value in values.items()} == {
        "records_total:embedded:": 7.0,
        "records_total:quarantined:": 2.0,
        "records_total:duplicate:": 1.0,
        "quarantined_total:empty_text:": 2.0,
        "tokens_total": 500.0,
        "seconds_total:read:": 1.0,
        "seconds_total:encode:": 3.0,
        "done_ratio": 0.5,
    }


def test_a_training_run_is_told_to_prometheus(ray_cluster: None) -> None:
    metrics = {"loss": 2.5, "learning_rate": 1e-4, "gradient_norm": 0.5, "accuracy": 0.9}
    TrainingMetrics("/data/März").set(Progress(40, 100, metrics, tokens_per_second=700.0, seconds_left=9.0))
    assert exported("ray_rayvec_train", 5) == {
        "ray_rayvec_train_loss": 2.5,
        "ray_rayvec_train_learning_rate": 1e-4,
        "ray_rayvec_train_gradient_norm": 0.5,
        "ray_rayvec_train_tokens_per_second": 700.0,
        "ray_rayvec_train_step": 40.0,
    }
