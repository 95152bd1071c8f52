"""A training worker killed in the middle of a run: another takes its place, and the result is the same to the bit."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.train import TrainConfig, train
from rayvec.training.curves import read_metrics
from tests.runs import adapter, config, write_inputs

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),
]


def _kill_one_worker(run: TrainConfig, killed: list[int], after: int = 6) -> None:
    """Wait until `after` steps are logged, then kill one of this test's own training workers."""
    metrics = Path(run.output) / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while len(read_metrics(metrics)) < after and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        # What ended since it was listed, or waits for its parent to notice, is not the one.
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    common = {"workers": 2, "steps": 60, "checkpoint_every": 4, "batch_size": 16}
    left_alone = config(inputs, tmp_path / "alone", **common)
    train(left_alone)
    run = config(inputs, tmp_path / "killed", **common)
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one_worker, args=(run, killed), daemon=True)
    killer.start()
    report = train(run)
    killer.join(timeout=10)
    assert killed, "the run was over before a worker was killed; raise steps"
    assert report["resumed_from_step"] > 0
    assert adapter(Path(run.output)) == adapter(Path(left_alone.output))


def test_a_killed_driver_changes_nothing(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    common = {"workers": 2, "steps": 40, "checkpoint_every": 4, "batch_size": 16}
    left_alone = config(inputs, tmp_path / "alone", **common)
    train(left_alone)
    run = config(inputs, tmp_path / "killed", **common)
    file = tmp_path / "run.yaml"
    file.write_text(run.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "jobs.train", "--config", str(file)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = Path(run.output) / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while len(read_metrics(metrics)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    psutil.wait_procs(started, timeout=60)  # its Ray ends with it
    assert not (Path(run.output) / "rayvec.json").exists(), "the run was over before the kill; raise steps"
    report = train(run)
    assert report["resumed_from_step"] > 0
    assert adapter(Path(run.output)) == adapter(Path(left_alone.output))
