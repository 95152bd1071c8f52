from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayvec.errors import UserError
from rayvec.modeling.prompts import TEMPLATES, Prompts
from rayvec.modeling.text_tokenizer import TextTokenizer
from tests.models import SENTENCES, tiny_tokenizer

CHINESE = "今天天气很好，我们去公园散步。" * 31  # 465 characters without a space


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def load(folder: Path, max_length: int = 512, **prompts: Any) -> TextTokenizer:
    return TextTokenizer.load(folder, Prompts(**prompts), max_length)


def pooled_text(tokenizer: TextTokenizer, texts: list[str], instruction: str | None = None) -> list[str]:
    """The text of exactly the pooled tokens."""
    batch = tokenizer.tokenize(texts, instruction)
    spans = zip(batch.pool_start, batch.pool_end, strict=True)
    return [tokenizer.tokenizer.decode(batch.row(i)[a:b]) for i, (a, b) in enumerate(spans)]


def test_pooled_tokens_are_the_text(folder: Path) -> None:
    assert pooled_text(load(folder), SENTENCES) == SENTENCES


def test_pooled_tokens_are_the_text_after_an_instruction(folder: Path) -> None:
    assert pooled_text(load(folder), SENTENCES, "Find the function") == SENTENCES


@pytest.mark.parametrize("template", TEMPLATES)
def test_pooled_tokens_are_the_text_inside_a_template(folder: Path, template: str) -> None:
    tokenizer = load(folder, template=template)
    assert [text.strip() for text in pooled_text(tokenizer, SENTENCES, "Find it")] == SENTENCES


@pytest.mark.parametrize("template", ["llama3", "inst", "gemma", "qwen"])
def test_template_tokens_after_the_text_survive_truncation_and_are_not_pooled(folder: Path, template: str) -> None:
    tokenizer = load(folder, max_length=64, template=template)
    batch = tokenizer.tokenize([SENTENCES[0] * 20], "Find it")
    after = batch.row(0)[int(batch.pool_end[0]) :]
    assert len(batch.row(0)) == 64
    assert tokenizer.tokenizer.decode(after) == TEMPLATES[template].suffix


def test_d2_after_truncation_exactly_the_texts_surviving_tokens_are_pooled(folder: Path) -> None:
    tokenizer = load(folder, max_length=32)
    whole = load(folder).tokenize([SENTENCES[1]], "Find the function that")
    cut = tokenizer.tokenize([SENTENCES[1]], "Find the function that")
    start = int(whole.pool_start[0])
    assert 0 < 32 - start < whole.pool_end[0] - start  # some of the text survives, and not all
    assert (int(cut.pool_start[0]), int(cut.pool_end[0])) == (start, 32)
    assert cut.row(0).tolist() == whole.row(0)[:32].tolist() and bool(cut.truncated[0])


def test_d3_a_long_text_without_spaces_is_cut_by_tokens(folder: Path) -> None:
    tokenizer = load(folder, max_length=100)
    batch = tokenizer.tokenize([CHINESE])
    assert int(batch.pool_end[0] - batch.pool_start[0]) == 99
    assert pooled_text(tokenizer, [CHINESE])[0].rstrip("\ufffd") in CHINESE


def test_truncation_is_flagged(folder: Path) -> None:
    assert load(folder, max_length=20).tokenize(["short", CHINESE]).truncated.tolist() == [False, True]


def test_a_text_of_exactly_max_length_is_not_truncated(folder: Path) -> None:
    length = int(load(folder).tokenize([SENTENCES[0]]).lengths[0])
    assert not load(folder, max_length=length).tokenize([SENTENCES[0]]).truncated[0]


def test_a_megabyte_is_cut_to_the_same_tokens_as_by_reading_it_whole(folder: Path) -> None:
    text = " ".join(SENTENCES) * 2000
    tokenizer = load(folder, max_length=64)
    whole = tokenizer.tokenizer(text).input_ids
    assert tokenizer.tokenize([text]).row(0).tolist() == whole[:64]


def test_a_text_that_packs_much_into_few_tokens_is_read_whole(folder: Path) -> None:
    tokenizer = load(folder, max_length=3)
    rare = "x" * 96  # one token takes all the characters that are read at first
    tokenizer.tokenizer.add_tokens([rare])
    tokenizer = TextTokenizer(tokenizer.tokenizer, Prompts(), 3)
    row = tokenizer.tokenize([rare * 3]).row(0)
    assert row.tolist() == [1, row[1], row[1]]


def test_an_empty_text_stands_for_its_whole_row(folder: Path) -> None:
    batch = load(folder).tokenize([""], "Find it")
    assert (int(batch.pool_start[0]), int(batch.pool_end[0])) == (0, int(batch.lengths[0]))


def test_an_empty_text_has_a_token_even_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    batch = load(tiny_tokenizer(tmp_path, bos=False)).tokenize(["", "a"])
    assert batch.lengths.tolist() == [1, 1]


def test_special_tokens_of_the_tokenizer_are_not_pooled(tmp_path: Path) -> None:
    batch = load(tiny_tokenizer(tmp_path, bert=True)).tokenize(["a", ""])
    assert (batch.pool_start.tolist(), batch.pool_end.tolist()) == ([1, 0], [2, 2])


def test_pool_special_pools_them_but_no_instruction(tmp_path: Path) -> None:
    tokenizer = load(tiny_tokenizer(tmp_path, bert=True), pool_special=True)
    plain, instructed = tokenizer.tokenize(["a"]), tokenizer.tokenize(["a"], "Find")
    assert (int(plain.pool_start[0]), int(plain.pool_end[0])) == (0, 3)
    assert tokenizer.tokenizer.decode(instructed.row(0)[int(instructed.pool_start[0]) :]) == "a</s>"


def test_append_eos_ends_the_pooled_span_and_survives_truncation(folder: Path) -> None:
    batch = load(folder, max_length=16, append_eos=True).tokenize([SENTENCES[0], "a"])
    assert [int(batch.row(i)[-1]) for i in range(2)] == [2, 2]
    assert batch.pool_end.tolist() == batch.lengths.tolist() == [16, 3]


def test_an_instruction_that_leaves_no_room_is_the_users_mistake(folder: Path) -> None:
    with pytest.raises(UserError, match="shorten the instruction"):
        load(folder, max_length=8).tokenize(["text"], "a long instruction that takes it all")


def test_a_folder_without_a_tokenizer_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load(tmp_path)


def test_limits_set_on_the_shared_tokenizer_do_not_reach_us(folder: Path) -> None:
    tokenizer = load(folder)
    tokenizer.tokenizer(["a b c", "d"], truncation=True, max_length=2, padding=True)
    assert tokenizer.tokenize(SENTENCES).lengths.min() > 5


def test_the_digest_survives_saving(folder: Path, tmp_path: Path) -> None:
    tokenizer = load(folder)
    tokenizer.save(tmp_path)
    assert load(tmp_path).digest == tokenizer.digest


def test_the_digest_tells_tokenizers_apart(folder: Path, tmp_path: Path) -> None:
    assert load(tiny_tokenizer(tmp_path, bos=False)).digest != load(folder).digest
