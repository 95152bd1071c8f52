from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.evaluation.sts import cosines, read_pairs, spearman

ROWS = 'a,b,5.0\n"x, y","two\nlines",2.5\nc,d,0\n'


@pytest.mark.parametrize("header", ["", "sentence1,sentence2,score\n"])
@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz"])
def test_pairs_are_read(tmp_path: Path, header: str, name: str) -> None:
    data = (header + ROWS).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    pairs = read_pairs(str(tmp_path / name))
    assert (pairs.first, pairs.second) == (["a", "x, y", "c"], ["b", "two\nlines", "d"])
    assert pairs.scores.tolist() == [5.0, 2.5, 0.0]


@pytest.mark.parametrize(
    ("text", "message"), [("a,b,1\na,b\nc,d,2\n", "record 2: needs"), ("a,b,1\n", "1 pairs; a correlation needs")]
)
def test_bad_pairs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_pairs(str(tmp_path / "p.csv"))


def test_cosines_of_rows() -> None:
    a = np.array([[1, 0], [1, 1], [0, 0]], dtype=np.float32)
    b = np.array([[2, 0], [1, -1], [1, 0]], dtype=np.float32)
    assert cosines(a, b) == pytest.approx([1, 0, 0])


def test_the_correlation_is_of_ranks_with_ties_shared() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 80).astype(float)
    predicted = scores**3 + rng.normal(0, 20, 80)
    found = spearman(predicted, scores)
    assert found.mean == pytest.approx(spearmanr(predicted, scores).statistic)
    assert found.low < found.mean < found.high


def test_constant_predictions_correlate_with_nothing() -> None:
    assert spearman(np.ones(10), np.arange(10.0)).mean == 0.0
