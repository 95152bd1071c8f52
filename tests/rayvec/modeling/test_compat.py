from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from rayvec.modeling import compat, references
from rayvec.modeling.compat import Llm2VecReading
from rayvec.modeling.prompts import Prompts
from rayvec.modeling.text_tokenizer import TextTokenizer
from tests.models import tiny_tokenizer


@pytest.mark.parametrize("module", [compat, references])
def test_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def words(text: str) -> int:
    """A tokenizer of words that stops counting at 8, as the reference's does at its maximum length."""
    return min(8, len(text.split()))


@pytest.mark.parametrize(
    ("number", "left"),
    [
        (5, 5),  # not too many: nothing is touched
        (6, 5),  # 6 · 5/6
        (20, 5),  # counted as 8: 20 · 5/8 = 12; again 8: 12 · 5/8 = 7; 7 · 5/7 = 5
    ],
)
def test_words_are_dropped_in_proportion_to_the_tokens_counted(number: int, left: int) -> None:
    text = " ".join("w" * number)
    short = Llm2VecReading(doc_max_length=5).shortened(text, words)
    assert short == " ".join("w" * left)


def test_the_proportion_is_rounded_as_by_the_reference() -> None:
    # 49 · (2/49) in floats is a hair under 2.
    assert Llm2VecReading(doc_max_length=2).shortened("w " * 49, lambda text: len(text.split())) == "w"


def test_d3_a_long_text_without_spaces_becomes_empty_as_in_the_reference() -> None:
    assert Llm2VecReading(doc_max_length=5).shortened("天" * 9, len) == ""


def test_what_follows_a_separator_in_the_text_is_read_and_not_counted() -> None:
    read, own = Llm2VecReading().dressed("Find: ", "a !@#$%^&*() b", "")
    assert (read, own) == ("Find: a  b", "a ")


def test_an_ending_stands_after_the_template_and_counts() -> None:
    read, own = Llm2VecReading(ending=" </s>").dressed("[INST] ", "a \n", " [/INST]")
    assert (read, own) == ("[INST] a [/INST] </s>", "a [/INST] </s>")


def test_without_a_template_a_texts_last_spaces_stay() -> None:
    assert Llm2VecReading().dressed("", "a \n", "") == ("a \n", "a \n")


def test_more_tokens_alone_than_in_the_row_pool_the_whole_row() -> None:
    assert Llm2VecReading().span(4, own=6) == (0, 4)


def load(folder: Path, max_length: int) -> TextTokenizer:
    prompts = Prompts(template="inst", instruction_format="{instruction} ", compat=Llm2VecReading(doc_max_length=6))
    return TextTokenizer.load(folder, prompts, max_length)


def test_the_row_is_cut_at_its_end_and_keeps_the_tokenizers_own_tokens(tmp_path: Path) -> None:
    tokenizer = load(tiny_tokenizer(tmp_path, bert=True), 6)
    batch = tokenizer.tokenize(["abcdef"])
    whole = tokenizer.tokenizer("[INST] abcdef [/INST]").input_ids
    assert (
        batch.row(0).tolist()
        == [*whole[:5], whole[-1]]
        == tokenizer.tokenizer("[INST] abcdef [/INST]", truncation=True, max_length=6).input_ids
    )
    assert bool(batch.truncated[0])


def test_dropped_words_count_as_truncation(tmp_path: Path) -> None:
    tokenizer = load(tiny_tokenizer(tmp_path), 64)
    assert tokenizer.tokenize(["a b", "a b c d e f g h i"]).truncated.tolist() == [False, True]


def test_an_empty_row_gets_one_token(tmp_path: Path) -> None:
    prompts = Prompts(compat=Llm2VecReading())
    batch = TextTokenizer.load(tiny_tokenizer(tmp_path, bos=False), prompts, 8).tokenize([""])
    assert batch.lengths.tolist() == [1]


def test_the_fingerprint_of_usual_prompts_does_not_know_of_it() -> None:
    usual = Prompts(template="inst")
    assert "compat" not in usual.model_dump() and "compat" not in usual.to_yaml()
    other = usual.replace(compat=Llm2VecReading())
    assert other.digest() != usual.digest() != other.replace(compat=Llm2VecReading(ending="</s>")).digest()
    assert Prompts.parse(other.model_dump(mode="json")) == other
