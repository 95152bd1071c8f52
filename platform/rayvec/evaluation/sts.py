"""Semantic textual similarity: how well the cosine of two sentences' vectors follows people's judgement of them.

Knows arrays and csv files. Knows no encoder. Shapes: N pairs, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError
from rayvec.evaluation.statistics import LEVEL, Estimate, Values
from rayvec.evaluation.text_files import csv_rows, read_text

_RESAMPLES = 999


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences and their similarity as people see it (any scale, higher is more alike)."""

    first: list[str]
    second: list[str]
    scores: Values

    def __len__(self) -> int:
        return len(self.first)


def read_pairs(uri: str) -> SentencePairs:
    """Pairs from a csv file of sentence, sentence, score, gzipped or not, with or without a header line.

    Raises UserError that names the file, and the record where one is at fault.
    """
    rows = [row for row in csv_rows(read_text(uri, "a csv file of sentence, sentence, score"), uri) if row]
    rows = rows[1:] if rows and not _is_number(rows[0][-1]) else rows
    for number, row in enumerate(rows, 1):
        if len(row) != 3 or not _is_number(row[2]):
            raise UserError(f"{uri}, record {number}: needs sentence, sentence and a number, separated by commas")
    if len(rows) < 3:
        raise UserError(f"{uri} holds {len(rows)} pairs; a correlation needs at least 3")
    return SentencePairs([row[0] for row in rows], [row[1] for row in rows], np.array([float(row[2]) for row in rows]))


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def cosines(a_ND: npt.NDArray[np.float32], b_ND: npt.NDArray[np.float32]) -> Values:
    """The cosine of each pair of rows; 0 where one of them is all zeros."""
    assert a_ND.shape == b_ND.shape, (a_ND.shape, b_ND.shape)
    a, b = a_ND.astype(np.float64), b_ND.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: Values = np.sum(a * b, axis=1)
    products[lengths > 0] /= lengths[lengths > 0]
    return products


def spearman(predicted: Values, scores: Values) -> Estimate:
    """Spearman's rank correlation with its percentile bootstrap interval over pairs; 0 where one side is constant."""
    value = correlation(predicted, scores)
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(scores), len(scores)) for _ in range(_RESAMPLES))
    found = [correlation(predicted[draw], scores[draw]) for draw in draws]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def correlation(a: Values, b: Values) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
