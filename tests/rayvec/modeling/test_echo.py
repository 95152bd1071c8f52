"""Echo embeddings: a text stands twice in its row; the second copy is pooled, where a causal model saw all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.modeling.echo import EchoEncoder
from rayvec.modeling.encoder import Encoder, TextEncoder
from tests.models import tiny_llama


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder: Path = tiny_llama(tmp_path_factory.mktemp("llama"))
    return TextEncoder.from_decoder(folder, attention="causal", max_length=64, device="cpu")


def test_the_second_copy_is_pooled(causal: TextEncoder) -> None:
    echo = EchoEncoder(causal, before="Say: ", between=" again: ")
    row = echo.tokenize(["a list of vectors"])
    ids = causal.tokenize(["a list of vectors"]).row(0)[1:].tolist()  # without <s>
    start, stop = int(row.pool_start[0]), int(row.pool_end[0])
    assert row.input_ids[start:stop].tolist() == ids
    text = causal.folder.tokenizer.tokenizer.decode(row.row(0), skip_special_tokens=True)
    assert text == "Say: a list of vectors again: a list of vectors"
    assert len(row.row(0)) > 2 * len(ids)


def test_an_early_token_of_a_causal_model_knows_the_text_s_end(causal: TextEncoder) -> None:
    """Pool the first word alone: plainly read it cannot differ by what comes later; in an echo it does."""
    texts = ["list of vectors", "list of sockets"]

    def first_token(encoder: Encoder) -> np.ndarray:
        batch = encoder.tokenize(texts)
        batch.pool_end[:] = batch.pool_start + 1
        return encoder.encode_tokens(batch)

    plain, echo = first_token(causal), first_token(EchoEncoder(causal))
    assert np.abs(plain[0] - plain[1]).max() < 1e-5
    assert np.abs(echo[0] - echo[1]).max() > 1e-3


def test_one_text_has_one_vector(causal: TextEncoder) -> None:
    for encoder in (causal, EchoEncoder(causal)):
        one = encoder.encode("a list of vectors", "find it")
        assert one.shape == (32,) and np.array_equal(one, encoder.encode(["a list of vectors"], "find it")[0])
    with pytest.raises(UserError, match=r"write \[text\]"):
        causal.tokenize("a list of vectors")


def test_an_echo_is_another_encoder_by_its_fingerprint(causal: TextEncoder) -> None:
    found = {EchoEncoder(causal).fingerprint.short, EchoEncoder(causal, before="").fingerprint.short}
    assert len(found | {causal.fingerprint.short}) == 3
    assert isinstance(EchoEncoder(causal), Encoder)


def test_texts_that_do_not_fit_twice_are_refused(tmp_path: Path) -> None:
    encoder = TextEncoder.from_decoder(tiny_llama(tmp_path), attention="causal", max_length=300, device="cpu")
    with pytest.raises(UserError, match=r"600|6\d\d when read twice, and the model has 512 positions"):
        EchoEncoder(encoder)
