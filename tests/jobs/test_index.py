"""The index job from a shell: what it prints, its exit statuses, and a kill in the middle of a build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.index import command as index_command
from jobs.index import main
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


def told(*arguments: str) -> str:
    result = CliRunner().invoke(index_command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """An index of two versions, made without Ray."""
    for count in (100, 120):
        write_index(tmp_path / "index", VECTORS[:count], texts_for(count))
    return tmp_path / "index"


def test_versions_are_listed_and_pruned_and_gone_back_to(two: Path) -> None:
    assert [line.split()[0] for line in told("--list", str(two)).splitlines()] == ["version", "v1", "v2"]
    assert "before  v2" in told("--rollback", str(two))
    assert "live    v2" in told("--rollback", str(two), "--version", "v2")
    assert "documents  120" in told("--verify", str(two))
    assert "removed  v1" in told("--prune", str(two), "--keep", "1")
    assert "removed  none" in told("--prune", str(two))


def test_ids_are_deleted_without_a_cluster(two: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").write_text("doc-3\ndoc-999\n")
    output = told("--recipe", "hash.update", "--set", f"index={two}", "--set", f"delete={tmp_path / 'gone'}")
    assert "deleted        1" in output and "unknown_ids    1" in output
    again = told("--recipe", "hash.update", "--set", f"index={two}", "--set", f"delete={tmp_path / 'gone'}")
    assert "this very update is in the live version" in again
    assert versions.list_versions(two) == ["v1", "v2", "v3"] and Index.open(two).count == 119


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--list", "nowhere"], 2, "holds no index"),
        (["--rollback", "INDEX", "--version", "v9"], 2, "there are: v1, v2"),
        (["--prune", "INDEX", "--keep", "0"], 2, "at least 1"),
        (["--keep", "3"], 2, "--keep goes with --prune DIR"),
        (["--version", "v1"], 2, "--version goes with --rollback DIR"),
        (["--compare", "INDEX", "v1", "v7"], 2, "there are: v1, v2"),
        (["--verify", "DAMAGED"], 7, "shard-00000.faiss"),
        (["--verify", "OTHER"], 2, "holds embeddings, not an index"),
        (["--recipe", "hash.update", "--set", "index=INDEX", "--set", "embeddings=OTHER"], 3, "weights"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_its_status(
    arguments: list[str],
    status: int,
    says: str,
    two: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "DAMAGED" in arguments:
        (two / "versions" / "v2" / "shard-00000.faiss").write_bytes(b"x")
    if "OTHER" in arguments[-1]:
        write_embeddings(tmp_path / "other", VECTORS[:5], texts_for(5), weights="another")
    places = {"INDEX": str(two), "DAMAGED": str(two), "OTHER": str(tmp_path / "other")}
    given = arguments
    for name, place in places.items():
        given = [part.replace(name, place) for part in given]
    monkeypatch.setattr(sys, "argv", ["index", *given])
    with pytest.raises(SystemExit) as ended:
        main(index_command)
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (status, 1) and says in told


def test_a_second_writer_has_a_status_of_its_own(two: Path) -> None:
    with versions.writing(two):
        done = run("--recipe", "hash.update", "--set", f"index={two}", "--set", "delete=[doc-1]")
    assert done.returncode == 4 and "another process is writing" in done.stderr
