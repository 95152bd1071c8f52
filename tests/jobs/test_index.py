"""The index job from a shell: what it prints, its exit statuses, and a kill in the middle of a build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines._ray import worker_environment
from rayvec import storage
from rayvec.indexing import versions
from rayvec.indexing.searcher import Index
from tests.artifacts import random_vectors, texts_for, write_embeddings, write_index

ENVIRONMENT = {**os.environ, **worker_environment()}
VECTORS = random_vectors(3000, 32)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("embeddings"), VECTORS, texts_for(3000))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.index", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_wrong_factory_is_one_line_and_status_2(embeddings: Path, tmp_path: Path) -> None:
    done = run("--recipe", "hash.index", "--set", f"embeddings={embeddings}", "--set", f"output={tmp_path}", "--set", "factory=IVF,PQ")  # fmt: skip  # noqa: E501
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "choose one of auto" in done.stderr


def test_a_build_killed_in_the_middle_leaves_the_live_version_and_the_next_build_whole(
    embeddings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "index"
    arguments = ["--recipe", "hash.index", "--set", f"embeddings={embeddings}", "--set", f"output={output}"]
    write_index(output, VECTORS[:100], texts_for(100))
    process = subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while not list((output / "versions").glob(".v2.*.tmp/shard-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Index.open(output).version == "v1"
    assert list((output / "versions").glob(".v2.*.tmp"))  # the kill did come in the middle

    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "recall@10" in done.stdout and str(output) in done.stdout
    opened = Index.open(output, threads=1)
    assert opened.version == "v2" and opened.has_lexical
    assert opened.dense(VECTORS[:3], k=1).rows[:, 0].tolist() == [0, 1, 2]
    assert storage.list_names(output / "versions") == versions.list_versions(output) == ["v1", "v2"]
