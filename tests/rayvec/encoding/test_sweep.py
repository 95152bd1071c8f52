"""Temporary files of killed runs go when they are old, and nothing else does."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rayvec.encoding.sweep import sweep


def test_old_temporary_files_go_and_young_ones_stay(tmp_path: Path) -> None:
    names = ["data/.a-1.parquet.0123abcd.tmp", ".CURRENT.0123abcd.tmp", "units/.b.json.ffff0000.tmp"]
    others = ["data/a-1.parquet", "data/.a-1.parquet.tmp", ".lock", "source/.hidden/x.tmp"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if name != names[2]:
            os.utime(path, (time.time() - 120,) * 2)
    assert sweep(str(tmp_path), older_than_s=60) == [".CURRENT.0123abcd.tmp", ".a-1.parquet.0123abcd.tmp"]
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {names[2], *others}


def test_a_folder_of_which_there_is_nothing_is_no_fault(tmp_path: Path) -> None:
    assert sweep(str(tmp_path / "not_yet"), 60) == []
    assert sweep("s3://bucket/out", 60) == []
