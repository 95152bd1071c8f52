"""How many threads a search takes, where nobody says: as many as the process was given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts import random_vectors, texts_for, write_index

SCRIPT = "import sys; from rayvec.indexing.searcher import Index; print(Index.open(sys.argv[1])._threads)"


@pytest.mark.parametrize(("given", "wanted"), [("3", 3), ("1", 1), (None, len(os.sched_getaffinity(0)))])
def test_an_open_index_takes_the_threads_of_its_process(tmp_path: Path, given: str | None, wanted: int) -> None:
    write_index(tmp_path, random_vectors(40, 8), texts_for(40))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if given is not None:
        environment["OMP_NUM_THREADS"] = given
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(wanted), done.stderr
