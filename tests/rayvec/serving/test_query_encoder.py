"""The encoder's part, as a plain object."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rayvec.errors import MismatchError
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch
from rayvec.serving.config import Limits
from rayvec.serving.problems import Problem
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


def test_an_answer_tells_the_encoder_that_it_is_of() -> None:
    encoded = asyncio.run(QueryEncoder(ENCODER).encode(["a"]))
    assert encoded.fingerprint == ENCODER.fingerprint.short


class Stuck(HashEncoder):
    """Its tokenizer does not come back until it is told to."""

    def __init__(self) -> None:
        super().__init__(64)
        self.release = threading.Event()

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        self.release.wait(10)
        return super().tokenize(texts, instruction)


@pytest.mark.parametrize(
    ("text", "told"), [("a", "one batch has been running"), ("a" * 2000, "tokenize: the same work has been running")]
)
def test_a_tokenizer_that_hangs_is_seen(text: str, told: str) -> None:
    async def run() -> None:
        encoder = Stuck()
        part = QueryEncoder(encoder, limits=Limits(timeout_seconds=0.01))
        await part.check_health()
        task = asyncio.create_task(part.encode([text]))
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match=told):
            await part.check_health()
        encoder.release.set()
        await task
        await part.check_health()

    asyncio.run(run())


class Counting(HashEncoder):
    """Notes how many tokens each pass had, and does none until it is told to."""

    def __init__(self) -> None:
        super().__init__(64)
        self.passes: list[int] = []
        self.go_on = threading.Event()

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        self.passes.append(int(batch.lengths.sum()))
        assert self.go_on.wait(60)
        return super().encode_tokens(batch)


def test_a_request_of_more_tokens_than_a_batch_lets_others_in_between() -> None:
    encoder, order = Counting(), []
    texts = [f"text number{i}" for i in range(40)]

    async def run() -> np.ndarray:
        part = QueryEncoder(encoder, limits=Limits(batch_tokens=30))

        async def long() -> np.ndarray:
            found = await part.encode(texts)
            order.append("long")
            return found.vectors_BD

        async def short() -> None:
            await part.encode_ids([[1, 2]])  # no thread's turn lies between this and its place in the queue
            order.append("short")

        first = asyncio.create_task(long())
        while not encoder.passes:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(short())
        await asyncio.sleep(0)
        encoder.go_on.set()
        await second
        return await first

    np.testing.assert_array_equal(asyncio.run(run()), ENCODER.encode(texts))
    assert max(encoder.passes) <= 30 and len(encoder.passes) > 4
    assert order == ["short", "long"]


def test_an_instruction_counts_for_each_text_of_a_request() -> None:
    encoder = Counting()
    encoder.go_on.set()
    part = QueryEncoder(encoder, limits=Limits(batch_tokens=900))
    encoded = asyncio.run(part.encode(["a"] * 200, "find what is like this text"))
    assert encoded.n_tokens > 900 and max(encoder.passes) <= 900


def test_short_and_long_texts_are_tokenized_at_once_and_get_their_own_vectors() -> None:
    encoder = TextEncoder.load("tiny")
    texts = [f"text number{i} " * (1 if i % 3 else 150) for i in range(60)]

    async def run() -> list[Any]:
        part = QueryEncoder(encoder)
        return await asyncio.gather(*(part.encode([text]) for text in texts))

    for encoded, text in zip(asyncio.run(run()), texts, strict=True):
        np.testing.assert_allclose(encoded.vectors_BD, encoder.encode([text]), atol=1e-5)
        assert encoded.n_tokens == len(encoder.tokenize([text]).input_ids)


def test_an_instruction_that_leaves_no_room_fails_its_own_request_alone() -> None:
    encoder = TextEncoder.load("tiny")
    too_long = "word " * 190  # of 128 tokens, and below 1,000 characters: it is read beside the others

    async def run() -> list[Any]:
        part = QueryEncoder(encoder)
        return await asyncio.gather(
            *(part.encode(["a"], too_long if i == 3 else None) for i in range(8)), return_exceptions=True
        )

    answers = asyncio.run(run())
    assert [type(answer).__name__ for answer in answers] == ["Problem" if i == 3 else "Encoded" for i in range(8)]


def test_a_token_that_the_model_does_not_have_is_refused_before_the_model_sees_it() -> None:
    encoder = TextEncoder.load("tiny")

    async def ask(ids: list[int]) -> Any:
        return await QueryEncoder(encoder).encode_ids([ids])

    last = encoder.vocab_size - 1
    assert asyncio.run(ask([last])).vectors_BD.shape == (1, encoder.dim)
    with pytest.raises(Problem, match=f"token id {last + 1} is not in this model's vocabulary"):
        asyncio.run(ask([0, last + 1]))
