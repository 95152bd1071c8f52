"""Fingerprints: equal encoders agree, others are told apart by name."""

from __future__ import annotations

import pytest

from rayvec.errors import MismatchError
from rayvec.fingerprint import Fingerprint

PRINT = Fingerprint(
    weights="w",
    tokenizer="t",
    attention="bidirectional",
    pooling="mean",
    prompts="p",
    max_length=512,
    normalize=True,
    dim=8,
)


def test_equal_fingerprints_agree() -> None:
    PRINT.require(PRINT.replace(), mine="encoder", theirs="index")


def test_a_mismatch_names_the_field_and_both_values() -> None:
    with pytest.raises(MismatchError, match=r"pooling \(encoder: mean, index: bos\)"):
        PRINT.require(PRINT.replace(pooling="bos"), mine="encoder", theirs="index")
