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
from tests.runs import adapter, config, kill_with_children, write_inputs

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),
]


def _kill_one_worker(run: TrainConfig, killed: list[int], after: int = 6) -> None:
    """Wait until `after` steps are logged, then kill one of this test's own training workers."""
    metrics = Path(run.output) / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while len(read_metrics(metrics)) < after and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        # What ended since it was listed, or waits for its parent to notice, is not the one.
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return


COMMON = {"workers": 2, "steps": 30, "checkpoint_every": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def left_alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed run ends with."""
    run = config(inputs, tmp_path_factory.mktemp("alone") / "run", **COMMON)
    train(run)
    return adapter(Path(run.output))


def test_a_killed_worker_changes_nothing(inputs: Path, left_alone: bytes, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "killed", **COMMON)
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one_worker, args=(run, killed), daemon=True)
    killer.start()
    report = train(run)
    killer.join(timeout=10)
    assert killed, "the run was over before a worker was killed; raise steps"
    assert report["resumed_from_step"] > 0
    assert adapter(Path(run.output)) == left_alone


@pytest.mark.nightly
def test_a_killed_driver_changes_nothing(inputs: Path, left_alone: bytes, tmp_path: Path) -> None:
    run = config(inputs, tmp_path / "killed", **COMMON)
    file = tmp_path / "run.yaml"
    file.write_text(run.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "jobs.train", "--config", str(file)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = Path(run.output) / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while len(read_metrics(metrics)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    kill_with_children(driver)
    assert not (Path(run.output) / "rayvec.json").exists(), "the run was over before the kill; raise steps"
    report = train(run)
    assert report["resumed_from_step"] > 0
    assert adapter(Path(run.output)) == left_alone
