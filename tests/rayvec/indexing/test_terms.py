"""Text to terms."""

from __future__ import annotations

import pytest

from rayvec.indexing.terms import Terms

PLAIN = Terms(stemmer=None)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("sort a List", ["sort", "list"]),
        ("snake_case", ["snake_case", "snake", "case"]),
        ("CamelCase", ["camelcase", "camel", "case"]),
        ("HTTPResponse", ["httpresponse", "http", "response"]),
        ("torch.nn.cross_entropy", ["torch.nn.cross_entropy", "cross_entropy", "torch", "nn", "cross", "entropy"]),
        ("__init__", ["__init__", "init"]),
        ("float16", ["float16"]),
        ("ends here. Next", ["ends", "here", "next"]),
        ("Straße naïve_Wort", ["straße", "naïve_wort", "naïve", "wort"]),
        ("ｆｕｌｌ ﬁt", ["full", "fit"]),
        ("…!? ()", []),
        ("東京都", ["東", "京", "都", "東京", "京都"]),
        ("猫", ["猫"]),
        ("データ", ["デー", "ータ"]),
        ("ﾃﾞｰﾀ", ["デー", "ータ"]),
        ("GPUで計算する。", ["gpu", "計", "算", "で計", "計算", "算す", "する"]),
        ("학교에서", ["학교", "교에", "에서"]),
        ("แมวกิน", ["แม", "มว", "วก", "กิ", "ิน"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("v1.0版", ["v1.0", "v1", "0", "版"]),
    ],
)
def test_words_identifiers_and_their_parts(text: str, terms: list[str]) -> None:
    assert PLAIN(text) == terms


def test_stems_are_of_words_and_parts_and_not_of_whole_identifiers() -> None:
    assert Terms(stemmer="english")("joining list_of_strings") == ["join", "list_of_strings", "list", "string"]


def test_stop_words_are_left_out_of_english_alone() -> None:
    assert Terms(stemmer="english")("was in") == []
    assert Terms(stemmer="german")("was in den Häusern") == ["was", "in", "den", "haus"]


def test_a_text_gives_the_same_terms_the_second_time() -> None:
    terms = Terms()
    assert terms("os.path.join paths") == terms("os.path.join paths")
