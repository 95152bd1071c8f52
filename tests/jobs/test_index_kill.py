"""The index job killed with SIGKILL: at its failpoints and at random moments. What was live serves on, and the next run
is clean. RAYVEC_KILLS says how many random moments (3); the seed is printed, and RAYVEC_SEED repeats them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines._ray import worker_environment
from rayvec import storage
from rayvec.indexing import versions
from rayvec.indexing.searcher import Index
from tests.artifacts import random_vectors, texts_for, write_embeddings

COUNT, DIM = 300, 16
pytestmark = pytest.mark.cluster

QUERIES = random_vectors(20, DIM, seed=3)
KILLED = (137, -9)
LATER = pytest.mark.nightly
VERBS = ("build", "update", "delete", "compact")


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A Ray that the jobs of this module join, so that a kill takes the driver alone; its workers import from here."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in worker_environment().items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=150_000_000, log_to_driver=False)  # fmt: skip  # noqa: E501
        yield {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        ray.shutdown()


@dataclass(frozen=True)
class Place:
    """A folder with embeddings of a corpus and of changes to it, and an index in the state before each verb."""

    folder: Path

    def arguments(self, verb: str, index: Path) -> list[str]:
        sets = {
            "build": ("index", f"embeddings={self.folder / 'base'}", f"output={index}"),
            "update": ("update", f"index={index}", f"embeddings={self.folder / 'new'}", "delete=[doc-0,doc-1]"),
            "delete": ("update", f"index={index}", "delete=[doc-4,doc-5,doc-6]"),
            "compact": ("compact", f"index={index}"),
        }[verb]
        overrides = [part for value in sets[1:] for part in ("--set", value)]
        return [sys.executable, "-m", "jobs.index", "--recipe", f"hash.{sets[0]}", *overrides]

    def before(self, verb: str) -> Path:
        return self.folder / "before" / verb

    def copy(self, verb: str, to: Path) -> Path:
        """The index as it is before a verb; links stay links."""
        shutil.copytree(self.before(verb), to)
        return to


def run(command: list[str], environment: dict[str, str], fault: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**environment, "RAYVEC_FAULT": fault}, capture_output=True, text=True, timeout=250, check=False
    )


def done(command: list[str], environment: dict[str, str]) -> None:
    finished = run(command, environment)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="module")
def place(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("place"))
    write_embeddings(made.folder / "base", random_vectors(COUNT, DIM), texts_for(COUNT))
    ids = [f"doc-{i}" for i in range(20, 40)] + ["new-1", "new-2"]
    write_embeddings(made.folder / "new", random_vectors(len(ids), DIM, 7), texts_for(len(ids)), ids=ids)
    write_embeddings(made.folder / "old", random_vectors(50, DIM, 8), texts_for(50))
    index = made.folder / "index"
    first = made.arguments("build", index)
    done([part.replace("/base", "/old") for part in first], environment)
    for verb in VERBS:
        if verb == "compact":
            continue
        shutil.copytree(index, made.before(verb))
        done(made.arguments(verb, index), environment)
    shutil.copytree(index, made.before("compact"))
    return made


Answers = list[list[tuple[str, float]]]


def answers(index: Path) -> Answers:
    """What the live version finds, dense and then lexical, once it has been verified whole: ids and scores."""
    opened = Index.open(index, threads=1)
    rankings = opened.dense(QUERIES, 10), opened.lexical([f"number{row}" for row in range(0, 40, 5)], 10)
    hits = [ranking.hits(query) for ranking in rankings for query in range(len(ranking))]
    return [[(opened.documents([row], ["id"])[0]["id"], score) for row, score in found] for found in hits]


@pytest.fixture(scope="module")
def after(place: Place, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers]:
    """What each verb's result answers: that of the next verb's beginning, but for the last."""
    found = {verb: answers(place.before(following)) for verb, following in pairwise(VERBS)}
    return found | {"compact": found["delete"]}  # a compaction changes no answer


def check_clean(index: Path, before: list[str]) -> None:
    names = storage.list_names(index / "versions")
    assert names == versions.list_versions(index) and len(names) == len(before) + 1
    assert [name for name in storage.list_names(index) if name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("build", "before_current"),
        ("update", "after_segment"),
        ("delete", "after_links"),
        ("delete", "before_seal"),
        ("delete", "before_rename"),
        ("delete", "before_current"),
        ("delete", "after_current"),
        ("compact", "before_current"),
        *[pytest.param("build", fault, marks=LATER) for fault in ("before_seal", "before_rename", "after_current")],
        *[pytest.param("update", fault, marks=LATER) for fault in ("after_links", "before_current", "after_current")],
        *[pytest.param("compact", fault, marks=LATER) for fault in ("before_seal", "before_rename", "after_current")],
    ],
)
def test_a_kill_at_a_failpoint(
    verb: str, fault: str, place: Place, after: dict[str, Answers], environment: dict[str, str], tmp_path: Path
) -> None:
    index = place.copy(verb, tmp_path / "index")
    before, old = versions.list_versions(index), answers(index)
    command = place.arguments(verb, index)
    killed = run(command, environment, fault)
    assert killed.returncode in KILLED, killed.stderr
    assert_equal(answers(index), after[verb] if fault == "after_current" else old)
    done(command, environment)
    check_clean(index, before)
    assert_equal(answers(index), after[verb])


@pytest.mark.parametrize("verb", ["update", *(pytest.param(verb, marks=LATER) for verb in ("build", "compact"))])
def test_kills_at_random_moments(
    verb: str, place: Place, after: dict[str, Answers], environment: dict[str, str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("RAYVEC_SEED", str(random.randrange(10**6))))
    print(f"RAYVEC_SEED={seed}")
    generator = random.Random(seed)
    index = place.copy(verb, tmp_path / "index")
    before, old = versions.list_versions(index), answers(index)
    command = place.arguments(verb, index)
    for _ in range(max(1, int(os.environ.get("RAYVEC_KILLS", "3")) // 3)):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # From the moment on at which it has begun to write.
        while process.poll() is None and not list((index / "versions").glob(".v*.tmp")):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 2.5))
        process.kill()
        process.wait()
        assert ids_of(answers(index)) in (ids_of(old), ids_of(after[verb]))
    done(command, environment)
    check_clean(index, before)
    assert_equal(answers(index), after[verb])


def ids_of(found: Answers) -> list[list[str]]:
    return [[id_ for id_, _ in row] for row in found]


def assert_equal(found: Answers, expected: Answers) -> None:
    """The same documents; scores may differ by as much as the mean length of a text does after an update."""
    assert ids_of(found) == ids_of(expected)
    mine, theirs = ([score for row in each for _, score in row] for each in (found, expected))
    np.testing.assert_allclose(mine, theirs, rtol=0.02)
