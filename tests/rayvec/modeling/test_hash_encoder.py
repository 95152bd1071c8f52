from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.modeling import hash_encoder
from rayvec.modeling.encoder import Encoder, load_encoder, load_tokenizer_only
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch

TEXTS = ["sort a list of words", "Open the file, then read it.", "", "向量检索", "snake_case and CamelCase", "one"]


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(hash_encoder).failed == 0


def test_it_is_an_encoder() -> None:
    assert isinstance(HashEncoder(), Encoder)


def test_vectors_are_float32_of_length_one() -> None:
    vectors = HashEncoder(dim=32).encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_a_vector_does_not_depend_on_the_batch_to_the_bit() -> None:
    encoder = HashEncoder()
    together = encoder.encode(TEXTS)
    assert all(np.array_equal(encoder.encode([text])[0], row) for text, row in zip(TEXTS, together, strict=True))


def test_vectors_are_the_same_in_every_process() -> None:
    code = "from rayvec import HashEncoder; print(HashEncoder(8).encode(['sort a list']).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == HashEncoder(8).encode(["sort a list"]).tobytes().hex()


def test_one_text_has_one_vector_and_its_letters_are_no_texts() -> None:
    encoder = HashEncoder(dim=32)
    assert np.array_equal(encoder.encode("sort a list"), encoder.encode(["sort a list"])[0])
    with pytest.raises(UserError, match=r"write \[text\]"):
        encoder.tokenize("sort a list")


def test_a_text_is_nearest_to_the_one_it_shares_words_with() -> None:
    documents = HashEncoder().encode(["read a parquet file", "train a decoder model", "serve search over HTTP"])
    query = HashEncoder().encode(["how do I train the model of a decoder"])[0]
    assert int((documents @ query).argmax()) == 1


def test_common_words_alone_make_no_texts_alike() -> None:
    a, b, c = HashEncoder(256).encode(["the parquet of a file", "the socket of a network", "parquet file"])
    assert a @ c > a @ b + 0.5


def test_the_instruction_is_tokenized_but_not_pooled() -> None:
    encoder = HashEncoder()
    tokens = encoder.tokenize(["sort a list"], instruction="Find the function")
    assert (tokens.pool_start[0], tokens.pool_end[0]) == (4, 7)
    assert np.array_equal(encoder.encode_tokens(tokens), encoder.encode(["sort a list"]))


def test_a_long_text_is_cut_by_tokens_and_flagged() -> None:
    tokens = HashEncoder(max_length=8).tokenize(["word " * 100, "short"])
    assert tokens.lengths.tolist() == [8, 2] and tokens.truncated.tolist() == [True, False]


def test_no_texts_are_no_vectors() -> None:
    assert HashEncoder(16).encode([]).shape == (0, 16)


def test_arrow_between_tokenizing_and_encoding_changes_nothing() -> None:
    encoder = HashEncoder()
    tokens = encoder.tokenize(TEXTS)
    again = TokenBatch.from_arrow(tokens.to_arrow())
    assert np.array_equal(encoder.encode_tokens(again), encoder.encode_tokens(tokens))


def test_references_name_it_with_its_dimension() -> None:
    assert load_encoder("hash:16").dim == 16
    assert load_tokenizer_only("hash").fingerprint == HashEncoder().fingerprint


def test_the_fingerprint_tells_dimensions_apart() -> None:
    assert HashEncoder(16).fingerprint != HashEncoder(32).fingerprint


@pytest.mark.parametrize("reference", ["hash:", "hash:x", "hash:2"])
def test_a_wrong_dimension_is_the_users_mistake(reference: str) -> None:
    with pytest.raises(UserError):
        load_encoder(reference)


def test_an_instruction_over_the_limit_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="shorten"):
        HashEncoder(max_length=4).tokenize(["text"], instruction="far too many words for this")
