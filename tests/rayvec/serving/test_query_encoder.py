"""The encoder's part, as a plain object."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from rayvec.errors import MismatchError
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.config import Limits
from rayvec.serving.query_encoder import QueryEncoder

ENCODER = HashEncoder(64)


def test_encoder_part_refuses_an_index_of_another_encoder() -> None:
    with pytest.raises(MismatchError, match="weights"):
        QueryEncoder(ENCODER, HashEncoder(32).fingerprint)


def test_many_requests_at_once_get_their_own_vectors() -> None:
    texts = [[f"text number{i}", f"other {i}"] for i in range(40)]

    async def run() -> list[np.ndarray]:
        part = QueryEncoder(ENCODER, limits=Limits(batch_tokens=30))
        return [encoded.vectors_BD for encoded in await asyncio.gather(*(part.encode(pair) for pair in texts))]

    for vectors_BD, pair in zip(asyncio.run(run()), texts, strict=True):
        np.testing.assert_array_equal(vectors_BD, ENCODER.encode(pair))
