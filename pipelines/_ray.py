"""Starting and leaving Ray: inside a submitted job the cluster it runs on, elsewhere a local one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import _ray_checks
from pipelines._finding import Finding
from rayvec.errors import UserError

LOG = logging.getLogger("rayvec.ray")

#: Set before Ray is imported: quiet, and the workers' libraries leave each other the cores.
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A busy machine of two cores can take longer than Ray's 30 seconds to start, and than the 5 after which Serve kills
    # a proxy that is not ready.
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # A proxy that has died is noticed after three looks, which Serve takes 10 s apart.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
}
#: Of a Ray on this machine alone.
ALONE = {
    # Nobody takes the machine away: a group of training workers is without one of its processes.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Training waits at each checkpoint, and at its end, until it is asked what it did, by default every 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray starts a process for each core before there is work; ours gets others, which have our environment.
    "RAY_prestart_worker_first_driver": "0",
}


@contextlib.contextmanager
def ray_session(**options: Any) -> Iterator[None]:
    """Ray for the length of the block; what was running before stays.

    Joins the cluster named by RAY_ADDRESS (Ray sets it for submitted jobs), else starts one on this machine alone,
    with `options` for `ray.init`. Raises UserError for what the doctor finds that endangers the run.
    """
    _heed(_ray_checks.quick())
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    # It warns that authentication is on, which is how it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        with _own_sigterm():
            cluster = ray.init(logging_level=logging.WARNING, log_to_driver=False)
        try:
            _heed(_ray_checks.joined(cluster.dashboard_url))
            yield
        finally:
            ray.shutdown()
        return
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    # Paths of Unix sockets may not pass 107 bytes, so the session's folder is short and its own.
    with tempfile.TemporaryDirectory(prefix="rv", ignore_cleanup_errors=True) as folder:
        local: dict[str, Any] = {
            "address": "local",
            "include_dashboard": False,
            "logging_level": logging.WARNING,
            "log_to_driver": False,
            "_temp_dir": folder,
            "runtime_env": {"env_vars": worker_environment()},
        }
        with _own_sigterm():
            ray.init(**(local | options))
        try:
            yield
        finally:
            ray.shutdown()


def _heed(findings: Iterable[Finding]) -> None:
    """Raise UserError for an error; tell of a warning in one line."""
    for finding in findings:
        if finding.level == "error":
            raise UserError(f"{finding.what}; {finding.cure}")
        LOG.warning("%s; %s", finding.what, finding.cure)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Around the start of Ray, which takes SIGTERM for itself, and aborts: who had it before has it after."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def wait_for_room(bundles: Sequence[Mapping[str, float]], seconds: float) -> bool:
    """Ask the cluster's autoscaler for room for all these at once, and wait for it; whether it is there.

    Where nothing scales the cluster, it only waits. Whoever needs the room says what is missing.
    """
    from ray.autoscaler.sdk import request_resources

    wanted = Counter[str]()
    for bundle in bundles:
        wanted.update(bundle)
    end = time.monotonic() + seconds
    asked = False
    try:
        while not (room := holds(_nodes(), bundles)) and time.monotonic() < end:
            if not asked:
                request_resources(bundles=[dict(bundle) for bundle in bundles])
                told = ", ".join(f"{value:g} {name}s" for name, value in wanted.items() if value)
                LOG.info("waiting up to %.0f s for a cluster with %s", seconds, told)
                asked = True
            time.sleep(min(2.0, seconds))
        return room
    finally:
        if asked:  # else the autoscaler would keep them for ever
            request_resources(bundles=[])


def holds(nodes: Iterable[Mapping[str, float]], bundles: Iterable[Mapping[str, float]]) -> bool:
    """Whether there is a node for each bundle, when each takes the first that has what it needs left.

    >>> holds([{"CPU": 2.0}, {"CPU": 2.0}], [{"CPU": 2.0}] * 2), holds([{"CPU": 2.0}, {"CPU": 2.0}], [{"CPU": 3.0}])
    (True, False)
    """
    left = [dict(node) for node in nodes]
    for bundle in bundles:
        fits = (node for node in left if all(node.get(name, 0.0) >= value for name, value in bundle.items()))
        node = next(fits, None)
        if node is None:
            return False
        node.update({name: node.get(name, 0.0) - value for name, value in bundle.items()})
    return True


def room_for(bundle: Mapping[str, float]) -> int:
    """How many of these the cluster that is joined could hold at once, were nothing else at work on it."""
    shares = (min(int(node.get(name, 0.0) / value) for name, value in bundle.items() if value) for node in _nodes())
    return sum(shares)


def _nodes() -> list[Mapping[str, float]]:
    """What each living node of the cluster that is joined has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def tell_of_idle_gpus(encoder: str, num_gpus: float, setting: str) -> None:
    """A line where the cluster has GPUs and its encoders ask for none; `setting` is what would have them ask."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0.0)
    if gpus and not num_gpus and encoder.partition(":")[0] != "hash":
        LOG.warning("the encoders run on CPUs, and the cluster has %g GPUs; use them with --set %s", gpus, setting)


def largest_node_cpus() -> float:
    """CPUs of the largest node of the cluster that is joined: what one worker may ask for at most."""
    return max((float(node.get("CPU", 0.0)) for node in _nodes()), default=0.0)


def worker_environment() -> dict[str, str]:
    """What workers need to import what the driver imported: in a source checkout `platform/` is not installed."""
    root = Path(__file__).resolve().parent.parent
    paths = [str(root / "platform"), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
