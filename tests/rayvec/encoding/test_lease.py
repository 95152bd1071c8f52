"""One writer at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayvec.encoding.lease import sole_writer
from rayvec.errors import ConcurrentWriterError


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        sole_writer(str(tmp_path)),
        pytest.raises(ConcurrentWriterError, match=f"process {os.getpid()}"),
        sole_writer(str(tmp_path)),
    ):
        pass


def test_a_writer_that_is_done_leaves_the_folder_free(tmp_path: Path) -> None:
    with sole_writer(str(tmp_path)):
        pass
    with sole_writer(str(tmp_path)):
        assert (tmp_path / ".lock").exists()
