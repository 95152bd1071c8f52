"""How well the tags of words were predicted: accuracy, entity-level F1 of BIO tags, macro F1; intervals over sentences.

Knows tags. Knows no model. Shapes: W words, S sentences; sentence s is words [offsets[s], offsets[s + 1]).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError
from rayvec.evaluation.statistics import LEVEL, Estimate, Values

Offsets = npt.NDArray[np.int64]

_RESAMPLES = 999
_BIO = re.compile(r"O|[BIES]-.+")


@dataclass(frozen=True)
class TagScores:
    """Shares in [0, 1]. entity_f1 is of whole entities, for BIO tags only; macro_f1 of words, every tag alike."""

    accuracy: Estimate
    entity_f1: Estimate | None
    macro_f1: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        f1 = None if self.entity_f1 is None else self.entity_f1.to_json()
        return {"accuracy": self.accuracy.to_json(), "entity_f1": f1, "macro_f1": self.macro_f1}


def are_bio(tags: Iterable[str]) -> bool:
    """Whether these tags mark entities of several words.

    >>> are_bio(["O", "B-PER", "I-PER"]), are_bio(["O", "NN"]), are_bio(["O"])
    (True, False, False)
    """
    found = set(tags)
    return found != {"O"} and all(_BIO.fullmatch(tag) for tag in found)


def score(gold: Sequence[str], predicted: Sequence[str], offsets: Offsets) -> TagScores:
    """The scores of W predicted tags. Raises UserError when scikit-learn or (for BIO tags) seqeval is not installed.

    Accuracy and entity F1 are of all words and all entities together (micro), as in the paper; their intervals come
    from drawing the sentences again. An entity counts when its type and both its ends are right (seqeval's default,
    which is conlleval's reading of tags).
    """
    assert len(gold) == len(predicted) == offsets[-1], (len(gold), len(predicted), offsets[-1])
    return TagScores(
        accuracy=ratio(*parts(gold, predicted, offsets, "accuracy")),
        entity_f1=ratio(*parts(gold, predicted, offsets, "entity_f1")) if are_bio({*gold}) else None,
        macro_f1=float(_library("sklearn.metrics").f1_score(gold, predicted, average="macro", zero_division=0)),
    )


def parts(
    gold: Sequence[str], predicted: Sequence[str], offsets: Offsets, metric: Literal["accuracy", "entity_f1"]
) -> tuple[Values, Values]:
    """What of each sentence is right, and of how much, [S] each: the metric is the sum of one over that of the other.

    entity_f1: 2 · both over (gold + predicted).
    """
    if metric == "accuracy":
        right_W = np.array([a == b for a, b in zip(gold, predicted, strict=True)], np.float64)
        return np.add.reduceat(right_W, offsets[:-1]), np.diff(offsets).astype(np.float64)
    # seqeval's reading of tags: (type, first word, last word).
    entities = _library("seqeval.metrics.sequence_labeling").get_entities
    both_S, all_S = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1)
    for s, (start, stop) in enumerate(pairwise(offsets)):
        a, b = set(entities(list(gold[start:stop]))), set(entities(list(predicted[start:stop])))
        both_S[s], all_S[s] = 2 * len(a & b), len(a) + len(b)
    return both_S, all_S


def require_libraries(tags: Iterable[str]) -> None:
    """Raise UserError when a library that scores such tags is not installed: to be asked before the work."""
    _library("sklearn.metrics")
    if are_bio(tags):
        _library("seqeval.metrics.sequence_labeling")


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0].replace("sklearn", "scikit-learn")
        raise UserError(f"tags are scored by {package}, which is not installed; run pip install {package}") from None


def ratio(parts_S: Values, wholes_S: Values) -> Estimate:
    """The sum of the parts over the sum of the wholes (0 where that is 0), with its percentile bootstrap interval.

    >>> ratio(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    Estimate(mean=0.5, low=0.5, high=0.5)
    """
    value = float(_ratio(parts_S, wholes_S))
    if len(parts_S) < 2:
        return Estimate(value, value, value)
    from scipy.stats import bootstrap

    found = bootstrap(
        (parts_S, wholes_S),
        _ratio,
        paired=True,
        vectorized=True,
        confidence_level=LEVEL,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def _ratio(parts: Values, wholes: Values, axis: int = -1) -> Values:
    part, whole = parts.sum(axis=axis), wholes.sum(axis=axis)
    quotient: Values = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return quotient
