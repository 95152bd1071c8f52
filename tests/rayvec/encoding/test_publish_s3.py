"""The commit protocol in a bucket: killed at any point and run again, it ends as on a local disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayvec import storage
from tests.buckets import s3_server
from tests.corpora import in_a_process
from tests.rayvec.encoding.test_publish import embed_all, state
from tests.rayvec.encoding.test_sink import Sink, commit, line, part


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as uri:
        yield uri


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run on a local disk leaves for readers."""
    folder = tmp_path_factory.mktemp("whole")
    embed_all(folder)
    return state(folder)


@pytest.mark.parametrize("fault", ["after_part:2", "before_record:2", "before_replace:2", "after_manifest"])
def test_a_run_killed_at_any_point_and_run_again_ends_the_same(
    bucket: str, undisturbed: dict[str, bytes], fault: str
) -> None:
    output = f"{bucket}/{fault.partition(':')[0]}"
    code = f"from tests.rayvec.encoding.test_publish import *; embed_all({output!r})"
    assert in_a_process(code, RAYVEC_FAULT=fault) == 137
    embed_all(output)  # type: ignore[arg-type]
    left = {name for name, size in storage.list_tree(output).items() if size and not name.startswith("attempts/")}
    assert left == undisturbed.keys()
    assert {name: storage.read_bytes(f"{output}/{name}") for name in left} == undisturbed


def test_a_unit_that_two_runs_commit_is_committed_once(bucket: str, tmp_path: Path) -> None:
    sink = Sink(f"{bucket}/twice")
    records = [sink.commit("u", part(5, seed), np.arange(5), [line(9), line(7, "duplicate")]) for seed in (0, 1)]
    assert records == [commit(tmp_path)] * 2
    assert storage.list_names(f"{bucket}/twice/data") == [records[0].file.removeprefix("data/")]
