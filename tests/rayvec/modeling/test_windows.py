"""Windows: every token in one of them, characters that go with them, and late chunks that have seen the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.prompts import Prompts
from rayvec.modeling.text_tokenizer import TextTokenizer
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.windows import Whole, Windowing, Windows, cut, join, select
from tests.models import SENTENCES, save_model, tiny_tokenizer

LONG = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def load(folder: Path, max_length: int = 512, **prompts: Any) -> TextTokenizer:
    return TextTokenizer.load(folder, Prompts(**prompts), max_length)


def letters(count: int) -> Whole:
    """A text of so many characters, each of which is one token; 1 stands before, 2 behind."""
    return Whole([1], list(range(10, 10 + count)), [2], [(i, i + 1) for i in range(count)], count)


def pooled(tokens: TokenBatch, windows: Windows) -> list[list[int]]:
    spans = zip(windows.row, windows.start, windows.end, strict=True)
    return [tokens.row(row)[a:b].tolist() for row, a, b in spans]


def test_windows_share_the_overlap_and_the_last_is_what_is_left() -> None:
    tokens, windows = cut([letters(8)], Windowing(4, overlap=1), max_length=6)
    assert pooled(tokens, windows) == [[10, 11, 12, 13], [13, 14, 15, 16], [16, 17]]
    assert windows.number().tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_text_that_fits_is_one_window(count: int) -> None:
    tokens, windows = cut([letters(count)], Windowing(4, overlap=1), max_length=6)
    assert tokens.row(0).tolist() == [1, *range(10, 10 + count), 2]
    assert (windows.char_start.tolist(), windows.char_end.tolist()) == ([0], [count])


def test_what_stands_around_a_text_stands_in_every_pass() -> None:
    tokens, _ = cut([letters(8)], Windowing(4), max_length=6)
    assert [tokens.row(i)[[0, -1]].tolist() for i in range(2)] == [[1, 2], [1, 2]]


def test_late_chunks_are_the_windows_pooled_from_one_pass() -> None:
    tokens, windows = cut([letters(8)], Windowing(4, overlap=1, late=True), max_length=10)
    assert (len(tokens), windows.row.tolist()) == (1, [0, 0, 0])
    assert (windows.start.tolist(), windows.end.tolist()) == ([1, 4, 7], [5, 8, 9])


def test_a_text_of_more_than_one_pass_is_pooled_where_it_has_seen_what_stands_before() -> None:
    # 6 tokens of the text a pass: [0, 6) holds chunks 0-1 and 2-3 and 4-5; the next begins 2 before chunk 6-7.
    tokens, windows = cut([letters(10)], Windowing(2, late=True), max_length=8)
    assert [tokens.row(i).tolist() for i in range(2)] == [[1, *range(10, 16), 2], [1, *range(14, 20), 2]]
    assert windows.row.tolist() == [0, 0, 0, 1, 1]
    assert pooled(tokens, windows) == [[10, 11], [12, 13], [14, 15], [16, 17], [18, 19]]


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"window_tokens = 5 and the 2 tokens around .* max_length = 6; .* to 4 or less"
    ):
        cut([letters(2)], Windowing(5), max_length=6)


def test_an_overlap_of_a_whole_window_is_refused() -> None:
    with pytest.raises(UserError, match="overlap_tokens = 4 must be less than window_tokens = 4"):
        Windowing(4, overlap=4)


def test_a_character_of_several_tokens_is_not_cut() -> None:
    text = Whole([], [1, 2, 3, 4, 5], [], [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3)], 3)
    tokens, windows = cut([text], Windowing(3), max_length=3)
    assert pooled(tokens, windows) == [[1, 2], [3, 4, 5]]
    assert (windows.char_start.tolist(), windows.char_end.tolist()) == ([0, 2], [2, 3])


def test_a_character_of_more_tokens_than_a_window_is_cut_all_the_same() -> None:
    text = Whole([], [1, 2, 3], [], [(0, 1)] * 3, 1)
    tokens, windows = cut([text], Windowing(2), max_length=2)
    assert pooled(tokens, windows) == [[1, 2], [3]]


def test_some_texts_of_a_cut_are_those_texts_cut() -> None:
    texts = [letters(8), letters(3), letters(9)]
    for late in (False, True):
        windowing = Windowing(4, overlap=1, late=late)
        tokens, windows = select(*cut(texts, windowing, max_length=8), np.array([0, 2]))
        alone, own = cut([texts[0], texts[2]], windowing, max_length=8)
        assert pooled(tokens, windows) == pooled(alone, own)
        assert (windows.text.tolist(), windows.row.tolist()) == (own.text.tolist(), own.row.tolist())


def test_cuts_joined_are_the_cut_of_all() -> None:
    texts, windowing = [letters(8), letters(3), letters(9)], Windowing(4, overlap=1)
    tokens, windows = join([([0], *cut(texts[:1], windowing, 6)), ([1, 2], *cut(texts[1:], windowing, 6))])
    whole, expected = cut(texts, windowing, 6)
    assert tokens.input_ids.tolist() == whole.input_ids.tolist()
    assert windows.to_arrow().equals(expected.to_arrow())


def test_nothing_joined_is_nothing() -> None:
    tokens, windows = join([])
    assert (len(tokens), len(windows)) == (0, 0)


def test_windows_go_through_arrow() -> None:
    _, windows = cut([letters(8)], Windowing(4), max_length=6)
    assert Windows.from_arrow(windows.to_arrow()).to_arrow().equals(windows.to_arrow())


# With a tokenizer.


def passages(text: str, windows: Windows) -> list[str]:
    return [text[a:b] for a, b in zip(windows.char_start, windows.char_end, strict=True)]


@pytest.mark.parametrize(
    "text", [LONG, "今天天气很好，我们去公园散步。" * 9, "  spaces   and\n\n lines \t " * 20, "🙂👍🏽" * 30]
)
def test_passages_put_together_are_the_text(folder: Path, text: str) -> None:
    _, windows = load(folder).cut([text], Windowing(20))
    assert len(windows) > 2
    assert "".join(passages(text, windows)) == text


@pytest.mark.parametrize("instruction", [None, "Find it"])
def test_the_pooled_tokens_of_a_window_are_its_passage(folder: Path, instruction: str | None) -> None:
    tokenizer = load(folder)
    for late in (False, True):
        tokens, windows = tokenizer.cut([LONG, "short"], Windowing(20, overlap=5, late=late), instruction)
        texts = [tokenizer.tokenizer.decode(ids) for ids in pooled(tokens, windows)]
        assert texts == [*passages(LONG, replace_text(windows, 0)), "short"]


def replace_text(windows: Windows, text: int) -> Windows:
    return Windows(*(getattr(windows, name)[windows.text == text] for name in windows.__dataclass_fields__))


def test_a_text_that_fits_is_read_as_it_is_tokenized(folder: Path) -> None:
    for prompts in ({}, {"append_eos": True}, {"pool_special": True}, {"template": "inst"}):
        for instruction in (None, "Find it"):
            tokenizer = load(folder, **prompts)
            plain = tokenizer.tokenize([*SENTENCES, ""], instruction)
            tokens, windows = tokenizer.cut([*SENTENCES, ""], Windowing(200), instruction)
            assert tokens.input_ids.tolist() == plain.input_ids.tolist()
            assert (windows.start.tolist(), windows.end.tolist()) == (
                plain.pool_start.tolist(),
                plain.pool_end.tolist(),
            )


def test_words_have_the_characters_of_the_text_and_not_of_its_lower_case() -> None:
    text = "İki İKİ words and more"  # the dotted capital is two characters in lower case
    _, windows = HashEncoder().cut([text], Windowing(2))
    assert "".join(passages(text, windows)) == text
    assert passages(text, windows)[-1] == "more"


def test_a_window_of_hashed_words_has_the_vector_of_its_passage() -> None:
    encoder, text = HashEncoder(), "one two three four five six seven"
    for late in (False, True):
        tokens, windows = encoder.cut([text], Windowing(3, overlap=1, late=late))
        found = encoder.encode_windows(tokens, windows)
        np.testing.assert_array_equal(found, encoder.encode(passages(text, windows)))


# With a model.


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_late_chunks_are_pooled_from_the_states_of_the_whole_text(llama: Path, pooling: Any) -> None:
    encoder = TextEncoder.from_decoder(llama, pooling=pooling, max_length=512, token_budget=300)
    texts = [LONG, "short", SENTENCES[0] * 3]
    tokens, windows = encoder.cut(texts, Windowing(30, overlap=7, late=True), "Find it")
    assert len(tokens) == 3 and len(windows) > 6
    states_TD = encoder.token_states(tokens)
    expected = []
    for row, start, end in zip(windows.row, windows.start, windows.end, strict=True):
        own = states_TD[tokens.offsets[row] + start : tokens.offsets[row] + end]
        weights = np.arange(1, len(own) + 1) if pooling == "weighted_mean" else np.ones(len(own))
        expected.append(np.average(own, axis=0, weights=weights))
    expected_WD = np.array(expected) / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_windows(tokens, windows), expected_WD, atol=1e-5)


def test_a_late_chunk_has_seen_what_stands_around_it(encoder: TextEncoder) -> None:
    windowing = Windowing(10, late=True)
    vectors = {}
    for end in ("nothing else", "something entirely different"):
        tokens, windows = encoder.cut([f"{SENTENCES[0]} {end}"], windowing)
        vectors[end] = encoder.encode_windows(tokens, windows)[0]
    assert np.abs(np.subtract(*vectors.values())).max() > 1e-3


def test_late_chunks_under_another_pooling_are_refused(llama: Path) -> None:
    encoder = TextEncoder.from_decoder(llama, pooling="last_token")
    with pytest.raises(UserError, match=r"long=late needs .* mean or weighted_mean, and this one's is last_token"):
        encoder.cut(["a"], Windowing(4, late=True))


def test_an_encoder_with_special_tokens_pools_its_own_chunks(tmp_path: Path) -> None:
    encoder = TextEncoder.from_decoder(
        save_model("bert", tmp_path), attention="native", prompts=Prompts(pool_special=True), max_length=64
    )
    tokens, windows = encoder.cut([LONG], Windowing(20, overlap=4, late=True))
    assert len(tokens) > 1
    assert (windows.start > 0).all() and (windows.end < tokens.lengths[windows.row]).all()
    assert np.isfinite(encoder.encode_windows(tokens, windows)).all()
