"""Segments of a version: row numbers with and without what is gone, and what of it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import VerificationError
from rayvec.indexing.segments import (
    DROPPED,
    Segment,
    Source,
    holding,
    load_dropped,
    load_rows,
    local,
    numbered_with,
    save_rows,
    segments_of,
)


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_segment_survives_its_manifest() -> None:
    segment = Segment("delta-00001", 10, 5, (Source("there", 1, "ab", 7),), left_out=2, lexical=True)
    assert segments_of({"segments": [segment.to_json()]}) == [segment]


def test_numbers_with_and_without_rows_left_out_are_each_others_inverse() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        total = int(generator.integers(1, 60))
        gone = np.sort(generator.choice(total, int(generator.integers(0, total)), replace=False)).astype(np.int64)
        kept = np.setdiff1d(np.arange(total), gone)
        assert numbered_with(np.arange(len(kept)), gone).tolist() == kept.tolist()


def test_rows_of_a_stretch_are_counted_from_its_start() -> None:
    assert local(rows(2, 5, 9), 4, 5).tolist() == [1]  # type: ignore[union-attr]
    assert local(rows(2, 9), 4, 5) is None


def test_a_source_without_a_row_left_is_forgotten() -> None:
    sources = [Source(name, 1, name, count) for name, count in (("a", 3), ("b", 2), ("c", 4))]
    kept, gone = holding(sources, rows(1, 3, 4, 5))
    assert [source.uri for source in kept] == ["a", "c"]
    assert gone.tolist() == [1, 3]


@pytest.mark.parametrize("content", [rows(3, 2), rows(2, 2), rows(-1, 2), rows(2, 5), np.array([1.0]), rows(1)[None]])
def test_rows_that_are_no_rows_are_refused(tmp_path: Path, content: np.ndarray) -> None:
    np.save(tmp_path / "rows.npy", content)
    with pytest.raises(VerificationError, match=r"rows\.npy"):
        load_rows(tmp_path / "rows.npy", 5)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(VerificationError, match="no row numbers"):
        load_rows(tmp_path / "rows.npy", 5)


def test_tombstones_agree_with_the_count(tmp_path: Path) -> None:
    manifest = {"segments": [Segment("", 0, 6, ()).to_json()], "count": 4}
    save_rows(tmp_path / DROPPED, rows(1, 3))
    assert load_dropped(tmp_path, manifest).tolist() == [1, 3]
    with pytest.raises(VerificationError, match="6 rows of which 2 are dropped, not 5"):
        load_dropped(tmp_path, {**manifest, "count": 5})
