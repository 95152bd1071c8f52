"""The line by `ray job submit`, as the README gives it, against a local cluster with token authentication on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import yaml

from rayvec.data.embeddings import EmbeddingsDataset
from tests.clusters import RAY, head, uv_takes_this_environment

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parent.parent.parent


class Way(NamedTuple):
    """How the docs submit: what `ray job submit` is told, and what runs the job on the node."""

    options: tuple[str, ...]
    python: tuple[str, ...] = ("python",)


#: The checkout's own sources; rayvec as it is installed on the nodes; an environment that uv has in hand.
OVERRIDE = Way(("--runtime-env", "infra/runtime_env.yaml"))
INSTALLED = Way(("--working-dir", "."))
UV = Way(("--working-dir", "."), ("uv", "run", "python"))
#: What the first of them sends, as a program would send it.
SOURCES: dict[str, Any] = {
    **yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text(encoding="utf-8")),
    "working_dir": str(ROOT),
}


@dataclass
class Cluster:
    dashboard: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str, way: Way = OVERRIDE) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of the README: waits, prints the job's log, ends with the job's status."""
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.dashboard, *way.options, "--", *way.python, *entrypoint],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
        )

    def ray_job(self, verb: str, *arguments: str) -> str:
        """What another `ray job` command prints; it must end well."""
        command = [RAY, "job", verb, "--address", self.dashboard, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    @property
    def authorization(self) -> dict[str, str]:
        """What a program in this process, which has no token of its own, sends."""
        return {"authorization": f"Bearer {Path(self.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}


def until(happened: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with head(**uv_takes_this_environment()) as started:
        yield Cluster(started.dashboard, started.environment)


def embedding(folder: Path, records: int) -> tuple[list[str], Path]:
    """A job of many small units, and its output."""
    corpus, output = folder / "corpus.jsonl", folder / "embeddings"
    lines = [json.dumps({"id": f"d{i}", "text": f"document {i} " * 40}) for i in range(records)]
    corpus.write_text("\n".join(lines))
    return [
        "python", "jobs/embed.py", "--recipe", "hash.embed", "--set", f"source.path={corpus}",
        "--set", f"output={output}", "--set", "unit_rows=10", "--set", "actors=1",
    ], output  # fmt: skip


def committed(output: Path) -> int:
    return len(list((output / "units").glob("[0-9]*.json")))


def check_resumed(output: Path, records: int, kept: int) -> None:
    """All that was committed before was taken over, and every record is there once."""
    report = json.loads((output / "report.json").read_text())
    assert kept <= report["units_resumed"] < report["units"] == records // 10
    ids = [name for table in EmbeddingsDataset.open(str(output)).iter_tables() for name in table["id"].to_pylist()]
    assert len(ids) == records and set(ids) == {f"d{i}" for i in range(records)}


def test_the_job_api_refuses_who_has_no_token(cluster: Cluster) -> None:
    assert httpx.get(f"{cluster.dashboard}/api/jobs/", timeout=10).status_code == 401


@pytest.mark.parametrize(
    "way",
    [OVERRIDE, pytest.param(INSTALLED, marks=pytest.mark.nightly), pytest.param(UV, marks=pytest.mark.nightly)],
    ids=["override", "installed", "uv"],
)
def test_embed_then_index(cluster: Cluster, tmp_path: Path, way: Way) -> None:
    # Isolated: a checkout on the path would pass for an installation.
    if (
        way != OVERRIDE
        and subprocess.run([sys.executable, "-I", "-c", "import rayvec"], capture_output=True).returncode
    ):
        pytest.skip("rayvec is not installed in this environment; `make setup` installs it")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"d{i}", "text": f"document number {i}"}) + "\n" for i in range(300)))
    embedded = cluster.submit(
        "jobs/embed.py", "--recipe", "hash.embed",
        "--set", f"source.path={corpus}", "--set", f"output={tmp_path}/embeddings",
        way=way,
    )  # fmt: skip
    assert embedded.returncode == 0, embedded.stdout[-3000:] + embedded.stderr[-3000:]
    indexed = cluster.submit(
        "jobs/index.py", "--recipe", "hash.index",
        "--set", f"embeddings={tmp_path}/embeddings", "--set", f"output={tmp_path}/index",
        way=way,
    )  # fmt: skip
    assert indexed.returncode == 0, indexed.stdout[-3000:] + indexed.stderr[-3000:]
    assert (tmp_path / "index" / "CURRENT").exists()


@pytest.mark.parametrize(
    "stages",
    [("mntp",), pytest.param(("mntp", "simcse", "supervised"), marks=pytest.mark.nightly)],
    ids=["mntp", "all"],
)
def test_train(cluster: Cluster, tmp_path: Path, stages: tuple[str, ...]) -> None:
    """MNTP, SimCSE from it, the supervised stage from that: each a job of its own."""
    texts, pairs = tmp_path / "corpus.jsonl", tmp_path / "pairs.jsonl"
    lines = [f"sentence number {i} of many" for i in range(200)]
    texts.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(lines)))
    pairs.write_text("".join(json.dumps({"query": text[:18], "positive": text}) + "\n" for text in lines))
    documents = (f"data.source.path={texts}", "data.source.kind=jsonl", "data.min_characters=1")
    data = {
        "mntp": documents,
        "simcse": (*documents, f"start={tmp_path}/mntp"),
        "supervised": (f"data.sets=[{{name: pairs, path: {pairs}}}]", f"start={tmp_path}/simcse"),
    }
    for stage in stages:
        values = (*data[stage], "steps=2", "batch_size=8", f"output={tmp_path}/{stage}")
        overrides = [part for value in values for part in ("--set", value)]
        trained = cluster.submit("jobs/train.py", "--recipe", f"tiny.{stage}", *overrides)
        assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-3000:]
        assert (tmp_path / stage / "rayvec.json").exists()


def test_the_users_mistake_is_one_line_and_a_failed_job(cluster: Cluster) -> None:
    failed = cluster.submit("jobs/embed.py", "--recipe", "hash.embd")
    assert failed.returncode != 0
    assert "error: no recipe 'hash.embd' (did you mean hash.embed?)" in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout


def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    """From the shell and not waited for, watched, stopped half-way; then from a program."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    records = 2000
    job, output = embedding(tmp_path, records)
    cluster.ray_job("submit", "--no-wait", "--submission-id", "stopped", *OVERRIDE.options, "--", *job)
    until(lambda: committed(output) >= 10)
    cluster.ray_job("stop", "stopped")
    kept = committed(output)
    assert 10 <= kept < records // 10 and not (output / "CURRENT").exists()
    assert "embedding" in cluster.ray_job("logs", "stopped")

    client = JobSubmissionClient(cluster.dashboard, headers=cluster.authorization)
    assert client.get_job_status("stopped") == JobStatus.STOPPED
    again = client.submit_job(entrypoint=shlex.join(job), runtime_env=SOURCES, submission_id="again")
    until(lambda: client.get_job_status(again).is_terminal())
    assert client.get_job_status(again) == JobStatus.SUCCEEDED, client.get_job_logs(again)
    check_resumed(output, records, kept)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_job_whose_head_was_killed_goes_on_on_another_cluster(tmp_path: Path) -> None:
    records = 2000
    job, output = embedding(tmp_path, records)
    with head() as lost:
        Cluster(lost.dashboard, lost.environment).ray_job("submit", "--no-wait", *OVERRIDE.options, "--", *job)
        until(lambda: committed(output) >= 10)
        os.killpg(lost.group, signal.SIGKILL)
        until(lambda: not running(output))
    kept = committed(output)
    assert 10 <= kept < records // 10 and not (output / "CURRENT").exists()
    with head() as found:
        done = Cluster(found.dashboard, found.environment).submit(*job[1:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_resumed(output, records, kept)


def running(output: Path) -> bool:
    """Whether a driver of the job still is: it ends by itself when its cluster is gone."""
    return any(f"output={output}" in (one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"]))


def test_a_secret_in_the_runtime_environment_is_refused_and_not_repeated(cluster: Cluster, tmp_path: Path) -> None:
    leaking = {**SOURCES, "env_vars": {**SOURCES["env_vars"], "HF_TOKEN": "canary-4711"}}
    way = Way(("--runtime-env-json", json.dumps(leaking)))
    failed = cluster.submit(
        "jobs/embed.py", "--recipe", "hash.embed",
        "--set", f"output={tmp_path}/out", "--set", f"source.path={ROOT}/README.md",
        way=way,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "error: HF_TOKEN is in the job's runtime environment" in failed.stdout + failed.stderr
    assert "canary" not in failed.stdout + failed.stderr and not (tmp_path / "out" / "data").exists()
