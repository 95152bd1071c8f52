"""The line by `ray job submit`, as the README gives it, against a local cluster with token authentication on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with head(**uv_takes_this_environment()) as started:
        yield Cluster(started.dashboard, started.environment)


def test_the_job_api_refuses_who_has_no_token(cluster: Cluster) -> None:
    assert httpx.get(f"{cluster.dashboard}/api/jobs/", timeout=10).status_code == 401


@pytest.mark.parametrize("way", [OVERRIDE, INSTALLED, UV], ids=["override", "installed", "uv"])
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
