from __future__ import annotations

import sys

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.evaluation.tag_scores import are_bio, ratio, require_libraries, score

OFFSETS = np.array([0, 3, 5])


def test_accuracy_is_of_all_words_together() -> None:
    # Sentences with 1 of 3 and 2 of 2 right: 3 of 5 words, not (1/3 + 1) / 2.
    found = score(["X", "Y", "Y", "X", "X"], ["X", "X", "X", "X", "X"], OFFSETS)
    assert found.accuracy.mean == pytest.approx(0.6)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((1 / 3, 1.0))
    assert found.entity_f1 is None


def test_macro_f1_counts_every_tag_alike() -> None:
    # X: precision 3/5, recall 1, F1 3/4; Y: never predicted, F1 0.
    found = score(["X", "Y", "Y", "X", "X"], ["X", "X", "X", "X", "X"], OFFSETS)
    assert found.macro_f1 == pytest.approx(0.375)


def test_entities_count_when_type_and_both_ends_are_right() -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "B-LOC"]]
    predicted = [["B-PER", "O", "O"], ["B-LOC", "B-PER"]]
    found = score([*gold[0], *gold[1]], [*predicted[0], *predicted[1]], OFFSETS).entity_f1
    # Gold 3, predicted 3, and only the first LOC in both.
    assert found is not None and found.mean == pytest.approx(2 * 1 / (3 + 3))
    assert found.mean == pytest.approx(metrics.f1_score(gold, predicted))


def test_entities_end_with_their_sentence() -> None:
    pytest.importorskip("seqeval")
    found = score(["O", "O", "B-PER", "I-PER", "O"], ["O", "O", "B-PER", "I-PER", "O"], OFFSETS)
    split = score(["O", "O", "B-PER", "I-PER", "O"], ["O", "O", "B-PER", "O", "O"], OFFSETS)
    # In the second sentence I-PER stands alone, an entity of its own: so one of two is found.
    assert found.entity_f1 is not None and found.entity_f1.mean == 1.0
    assert split.entity_f1 is not None and split.entity_f1.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("module", "package", "tags"),
    [("seqeval", "seqeval", ["B-X", "O"]), ("sklearn", "scikit-learn", ["NN", "DT"])],
)
def test_a_missing_library_is_named(
    module: str, package: str, tags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"scored by {package}, which is not installed; run pip install {package}"):
        require_libraries(tags)


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["I-NP", "O"], True),
        (["O"], False),
        (["NN", "O"], False),
        (["B-X", "NN"], False),
    ],
)
def test_tags_are_bio_when_all_are(tags: list[str], bio: bool) -> None:
    assert are_bio(tags) is bio


def test_a_ratio_has_an_interval_over_sentences() -> None:
    parts = np.array([8.0, 1.0, 5.0, 0.0] * 25)
    wholes = np.array([10.0, 2.0, 5.0, 3.0] * 25)
    found = ratio(parts, wholes)
    assert found.mean == pytest.approx(14 / 20)
    assert 0.6 < found.low < found.mean < found.high < 0.8
    assert ratio(parts, wholes) == found


@pytest.mark.parametrize(("parts", "wholes", "value"), [([0.0, 0.0], [0.0, 0.0], 0.0), ([1.0], [2.0], 0.5)])
def test_a_ratio_of_nothing_or_of_one_sentence(parts: list[float], wholes: list[float], value: float) -> None:
    found = ratio(np.array(parts), np.array(wholes))
    assert (found.mean, found.low, found.high) == (value, value, value)
