"""Embedding on two Ray nodes while workers, drivers and a whole node are killed at random moments.

Whatever was killed, and when: the same command, run again until it ends with 0, must come to what an undisturbed run
comes to. Three kills by default; RAYVEC_KILLS sets another number (from 20 on the corpus has 20,000 documents), and
RAYVEC_SEED repeats the moments and victims of an earlier run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import pyarrow as pa
import pytest

from pipelines._ray import worker_environment
from pipelines._ray_checks import ALLOW_OPEN
from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.serving.config import is_loopback
from tests.clusters import own_ray_folder

if TYPE_CHECKING:
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("RAYVEC_KILLS", "3"))
SEED = int(os.environ.get("RAYVEC_SEED", random.randrange(10**6)))
RECORDS = 20_000 if KILLS >= 20 else 4_000
UNIT_ROWS = 64
REPEATS_EVERY = 499  # so often a record has the id of one that stands some units before it
BROKEN_EVERY = 997  # so often a line is no JSON
#: Workers and nodes are killed while units are left to do.
LATEST = 0.85

Victim = Literal["worker", "driver", "node"]
VICTIMS: tuple[Victim, ...] = ("worker", "driver", "node")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240 + 60 * KILLS),
    pytest.mark.filterwarnings(r"ignore::Warning:ray\."),
]


@dataclass
class Machines:
    """Two Ray nodes on this machine: the head, which the driver joins, and a second one that can be lost."""

    cluster: Cluster
    folder: str
    second: Node | None = None

    def add_second(self) -> None:
        # Not waited for: a run meets a node that comes back, or is not there yet.
        self.second = self.cluster.add_node(wait=False, num_cpus=2, temp_dir=self.folder, include_dashboard=False)

    def lose_second(self) -> None:
        assert self.second is not None
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def pipeline_workers(self) -> list[psutil.Process]:
        """The processes on these nodes that read or encode."""
        found = []
        for node in self.cluster.list_all_nodes():
            for raylet in node.all_processes["raylet"]:
                with contextlib.suppress(psutil.Error):
                    found += [
                        one
                        for one in psutil.Process(raylet.process.pid).children()
                        if any(name in " ".join(one.cmdline()) for name in ("EncodeUnit", "ReadUnit"))
                    ]
        return found


@dataclass
class Runs:
    """The same command, as often as it takes."""

    command: list[str]
    environment: dict[str, str]
    output: Path
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    #: At each start, the records that were there: by the name of the file, when it was written.
    found: list[dict[str, int]] = field(default_factory=list)

    def records(self) -> list[Path]:
        return [*(self.output / "units").glob("[0-9]*.json")]

    def going(self) -> bool:
        """Start the driver if there is none, and tell whether it is at work.

        One that ends by itself must end well: that workers are lost is no reason to fail.
        """
        if self.driver is None:
            self.found.append({file.name: file.stat().st_mtime_ns for file in self.records()})
            with self.log.open("ab") as log:
                self.driver = subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        status = self.driver.poll()
        assert status in (None, 0), f"a run ended with status {status}:\n{self.log.read_text()[-4000:]}"
        return status is None

    def until(self, units: int) -> None:
        """Come to the moment when so many units are committed."""
        while self.going() and len(self.records()) < units:
            time.sleep(0.01)
        assert self.going(), "the run was over before its last kill; take more records"

    def kill(self) -> None:
        """End the driver, if it runs, by SIGKILL."""
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()
            self.driver = None

    def to_the_end(self) -> dict[str, Any]:
        """Wait for the end; the report."""
        while self.going():
            time.sleep(0.05)
        return storage.read_json(self.output / "report.json")


@dataclass
class Setting:
    """A corpus and a cluster, and the commands of runs over it."""

    machines: Machines
    corpus: Path
    folder: Path
    environment: dict[str, str]

    def runs(self, name: str) -> Runs:
        output = self.folder / name
        values = (f"source.path={self.corpus}", f"output={output}", f"unit_rows={UNIT_ROWS}", "threads=1")
        command = [sys.executable, "-m", "jobs.embed", "--recipe", "hash.embed"]
        command += [part for value in values for part in ("--set", value)]
        return Runs(command, self.environment, output, self.folder / f"{name}.log")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("chaos")
    corpus = write_corpus(folder / "corpus.jsonl")
    # Unix socket paths may not pass 107 bytes, so Ray's folder is short.
    with (
        tempfile.TemporaryDirectory(prefix="rc", ignore_cleanup_errors=True) as short,
        pytest.MonkeyPatch.context() as patch,
    ):
        # Other modules may have turned authentication on; here it is off, and jobs are told that this is meant.
        open_ray = {"RAY_AUTH_MODE": "disabled", ALLOW_OPEN: "1"}
        for name, value in {**worker_environment(), **own_ray_folder(short), **open_ray}.items():
            patch.setenv(name, value)  # the nodes inherit it
        head = {"num_cpus": 1, "temp_dir": short, "include_dashboard": False}
        machines = Machines(Cluster(initialize_head=True, head_node_args=head), short)
        try:
            machines.add_second()
            yield Setting(machines, corpus, folder, {**os.environ, "RAY_ADDRESS": machines.cluster.address})
        finally:
            machines.cluster.shutdown()


def write_corpus(path: Path) -> Path:
    """Texts of 5 to 400 words; some ids twice, far apart, and some lines broken."""
    lines = []
    for i in range(RECORDS):
        name = f"d{i - 400}" if i % REPEATS_EVERY == REPEATS_EVERY - 1 else f"d{i}"
        words = " ".join(f"word{(i * 7 + j) % 1000}" for j in range(5 + i * 31 % 396 * (i % 4 == 0) + i % 40))
        line = json.dumps({"id": name, "text": f"document {i} {words}"})
        lines.append(line[:-9] if i % BROKEN_EVERY == BROKEN_EVERY - 1 else line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def strike(victim: Victim, runs: Runs, machines: Machines, rng: random.Random) -> None:
    """Kill one."""
    if victim == "driver":
        runs.kill()
    elif victim == "node":
        machines.lose_second()
        time.sleep(rng.uniform(0, 2))
        machines.add_second()
    else:
        while not (workers := machines.pipeline_workers()):
            assert runs.going(), "the run was over before its last kill; take more records"
            time.sleep(0.05)
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(workers).kill()


def rows(runs: Runs) -> pa.Table:
    """All rows that are published, in the order of their ids."""
    return pa.concat_tables(EmbeddingsDataset.open(str(runs.output)).iter_tables()).sort_by("id")


def test_a_job_does_not_join_a_ray_that_is_open_to_other_machines(setting: Setting) -> None:
    import ray

    runs = setting.runs("refused")
    environment = {name: value for name, value in setting.environment.items() if name != ALLOW_OPEN}
    job = subprocess.run(runs.command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if is_loopback(ray.util.get_node_ip_address()):
        pytest.skip("this machine has no other address than loopback")
    assert job.returncode == 2, job.stderr
    assert "runs code for whoever reaches its ports" in job.stderr and f"set {ALLOW_OPEN}=1" in job.stderr
    assert "Traceback" not in job.stderr and runs.records() == []


def test_what_is_killed_at_random_moments_changes_no_row(setting: Setting) -> None:
    rng = random.Random(SEED)
    print(f"RAYVEC_KILLS={KILLS} RAYVEC_SEED={SEED}, {RECORDS} records")
    undisturbed = setting.runs("undisturbed")
    expected = undisturbed.to_the_end()
    victims = [VICTIMS[i % len(VICTIMS)] for i in range(KILLS)]
    rng.shuffle(victims)
    moments = sorted(int(rng.uniform(0, LATEST) * expected["units"]) for _ in victims)
    runs = setting.runs("killed")
    began = time.monotonic()
    try:
        for victim, moment in zip(victims, moments, strict=True):
            runs.until(moment)
            time.sleep(rng.uniform(0, 0.1))
            print(f"{time.monotonic() - began:6.1f} s: {victim} killed with {len(runs.records())} units committed")
            strike(victim, runs, setting.machines, rng)
        report = runs.to_the_end()
    finally:
        runs.kill()
    print(f"{time.monotonic() - began:6.1f} s: done; {len(runs.found)} runs began with {[*map(len, runs.found)]} units")

    assert rows(runs).equals(rows(undisturbed))
    ids = rows(runs)["id"].to_pylist()
    assert len(ids) == len(set(ids)) == report["embedded"]
    both = [storage.read_json(one.output / "manifests" / "v1.json") for one in (runs, undisturbed)]
    assert both[0] == both[1]
    told = ("inputs", "embedded", "quarantined", "duplicates", "units", "manifest_sha256")
    assert {name: report[name] for name in told} == {name: expected[name] for name in told}
    verified = subprocess.run([*runs.command[:3], "--verify", str(runs.output)], cwd=ROOT, env=setting.environment)
    assert verified.returncode == 0
    assert redone(runs) == set()


def redone(runs: Runs) -> set[str]:
    """Records that a run found and that were written again, but for those whose repeated ids were settled."""
    settled = {f"{part['unit']}.json" for part in EmbeddingsDataset.open(str(runs.output)).parts if part["duplicates"]}
    last = {file.name: file.stat().st_mtime_ns for file in runs.records()}
    return {name for found in runs.found for name, written in found.items() if last[name] != written} - settled
