"""Collators: what is masked and with what, the two views, keys; nothing but (seed, step, example, place) decides."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.data.collators import Masking, MaskPolicy, columns, mask_tokens, two_views
from rayvec.modeling.tokens import TokenBatch

SPECIAL, MASK, VOCABULARY = (0, 1, 2), 3, 1000


def _policy(masking: Masking = "bert", probability: float = 0.2) -> MaskPolicy:
    return MaskPolicy(probability, masking, MASK, VOCABULARY, SPECIAL)


def _texts(rows: int = 400, length: int = 50) -> TokenBatch:
    ids = np.random.default_rng(0).integers(4, VOCABULARY, size=(rows, length))
    ids[:, 0], ids[:, -1] = 1, 2
    return TokenBatch.from_rows(list(ids))


def _mask(texts: TokenBatch, policy: MaskPolicy, step: int = 0, seed: int = 0):  # type: ignore[no-untyped-def]
    return mask_tokens(texts, policy, np.arange(len(texts)), [""] * len(texts), seed=seed, step=step)


def test_labels_are_what_stood_at_the_masked_places() -> None:
    texts = _texts()
    batch = _mask(texts, _policy())
    assert batch.labels.tolist() == texts.input_ids[batch.positions].tolist()


def test_the_first_token_and_special_tokens_are_never_masked() -> None:
    texts = TokenBatch.from_rows([[9, 1, 5, 2], [7, 8, 0]])
    batch = _mask(texts, _policy("all", probability=1.0))
    assert batch.positions.tolist() == [2, 5]
    assert batch.texts.input_ids.tolist() == [9, 1, MASK, 2, 7, MASK, 0]


def test_bert_masks_eighty_ten_ten() -> None:
    texts = _texts()
    batch = _mask(texts, _policy())
    now, before = batch.texts.input_ids[batch.positions], batch.labels
    assert len(before) / (len(texts) * 48) == pytest.approx(0.2, abs=0.02)
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.03)
    assert (now == before).mean() == pytest.approx(0.1, abs=0.02)
    assert not np.isin(now, SPECIAL).any()


def test_all_masks_every_chosen_token() -> None:
    batch = _mask(_texts(), _policy("all", probability=0.8))
    assert (batch.texts.input_ids[batch.positions] == MASK).all()


def test_everything_else_is_left_alone() -> None:
    texts = _texts()
    batch = _mask(texts, _policy())
    rest = np.setdiff1d(np.arange(len(texts.input_ids)), batch.positions)
    assert (batch.texts.input_ids[rest] == texts.input_ids[rest]).all()


def test_masks_do_not_depend_on_the_other_rows() -> None:
    texts = _texts(rows=10)
    whole = _mask(texts, _policy())
    chosen = np.array([7, 2])
    part = mask_tokens(texts.select(chosen), _policy(), chosen, ["", ""], seed=0, step=0)
    for place, row in enumerate(chosen):
        assert part.texts.row(place).tolist() == whole.texts.row(row).tolist()


def test_masks_change_with_step_and_seed() -> None:
    texts = _texts(rows=10)
    first = _mask(texts, _policy()).positions.tolist()
    assert first == _mask(texts, _policy()).positions.tolist()
    assert first != _mask(texts, _policy(), step=1).positions.tolist()
    assert first != _mask(texts, _policy(), seed=1).positions.tolist()


def test_two_views_are_the_same_texts_twice() -> None:
    texts = TokenBatch.from_rows([[1, 5, 6], [1, 7]])
    batch = two_views(texts, ["a", "b"])
    assert batch.texts.input_ids.tolist() == [1, 5, 6, 1, 7] * 2
    assert batch.keys[:2].tolist() == batch.keys[2:].tolist() and batch.keys[0] != batch.keys[1]


def test_columns_stand_one_after_another() -> None:
    query, positive, negative = (TokenBatch.from_rows([[n, 1], [n, 2]]) for n in (4, 5, 6))
    batch = columns([query, positive, negative], ["a", "b"])
    assert (batch.width, batch.tokens) == (3, 12)
    assert batch.texts.input_ids.tolist() == [4, 1, 4, 2, 5, 1, 5, 2, 6, 1, 6, 2]
