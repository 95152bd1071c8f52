"""Vectors of queries that come again, and an encoder that is another from one request to the next."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from rayvec.serving.cache import CachedEncoder
from rayvec.serving.services import Encoded, EncoderFacts


class Rolling:
    """An encoder behind whose handle another takes over; its vectors are its number and the text's length."""

    def __init__(self) -> None:
        self.number = 1
        self.asked: list[list[str]] = []

    async def encode(self, texts: list[str], instruction: str | None) -> Encoded:
        self.asked.append(texts)
        vectors = np.array([[self.number, len(text)] for text in texts], np.float32)
        return Encoded(vectors, len(texts), [False] * len(texts), f"encoder {self.number}")

    async def encode_ids(self, ids: list[list[int]]) -> Encoded:
        raise NotImplementedError

    async def facts(self) -> EncoderFacts:
        raise NotImplementedError


@pytest.fixture
def encoder() -> Rolling:
    return Rolling()


@pytest.fixture
def cached(encoder: Rolling) -> CachedEncoder:
    return CachedEncoder(encoder, 1 << 20)


def ask(cached: CachedEncoder, *texts: str, instruction: str | None = None) -> tuple[list[list[float]], str]:
    encoded = asyncio.run(cached.encode(list(texts), instruction))
    return encoded.vectors_BD.tolist(), encoded.fingerprint


def test_only_what_is_not_known_is_encoded(encoder: Rolling, cached: CachedEncoder) -> None:
    assert ask(cached, "a", "bb", "a") == ([[1, 1], [1, 2], [1, 1]], "encoder 1")
    assert ask(cached, "a", "ccc") == ([[1, 1], [1, 3]], "encoder 1")
    assert ask(cached, "a", instruction="find") == ([[1, 1]], "encoder 1")
    assert encoder.asked == [["a", "bb"], ["ccc"], ["a"]]
    assert cached.take_counts() == (2, 4)


def test_vectors_of_two_encoders_are_never_in_one_answer(encoder: Rolling, cached: CachedEncoder) -> None:
    ask(cached, "a", "bb")
    encoder.number = 2
    assert ask(cached, "a", "ccc") == ([[2, 1], [2, 3]], "encoder 2")
    assert ask(cached, "bb") == ([[2, 2]], "encoder 2"), "what the first encoder gave is no answer any more"


def test_what_is_forgotten_is_encoded_anew(encoder: Rolling, cached: CachedEncoder) -> None:
    ask(cached, "a")
    encoder.number = 2
    assert ask(cached, "a") == ([[1, 1]], "encoder 1")
    cached.forget()
    assert ask(cached, "a") == ([[2, 1]], "encoder 2")
