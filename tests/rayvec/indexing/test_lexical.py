"""BM25 over prose and code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import UserError, VerificationError
from rayvec.indexing.lexical import Lexical, bag
from tests.artifacts import TEXTS

LEXICAL = Lexical.build(TEXTS)


@pytest.mark.parametrize("query", ["path join", "os.path.join", "OS.PATH.JOIN", "joining paths", "join"])
def test_an_identifier_is_found_whole_and_by_its_parts(query: str) -> None:
    assert LEXICAL.search([query], k=1).rows.tolist() == [[0]]


def test_the_whole_identifier_ranks_above_its_parts_elsewhere() -> None:
    texts = ["join the path of an os to the path of another os, join by join", "see os.path.join for the rest of it"]
    assert Lexical.build(texts).search(["os.path.join"], k=2).rows.tolist() == [[1, 0]]


def test_scores_are_those_of_bm25() -> None:
    """One term that is in one text of two; Robertson and Zaragoza 2009, equation 3.15, with Lucene's idf."""
    texts = ["apple apple pear", "plum"]
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * 3 / 2))
    assert Lexical.build(texts).search(["apples"], k=1).scores[0, 0] == pytest.approx(expected, rel=1e-5)


def test_every_text_has_a_score_and_0_where_it_shares_no_term() -> None:
    found = LEXICAL.search(["the list of a socket"], k=4)
    expected = np.zeros(len(TEXTS), np.float32)
    expected[found.rows[0, found.rows[0] >= 0]] = found.scores[0, found.rows[0] >= 0]
    assert LEXICAL.scores("the list of a socket").tolist() == expected.tolist()
    assert LEXICAL.scores("zebra").tolist() == LEXICAL.scores("").tolist() == [0.0] * len(TEXTS)


def test_texts_that_share_no_term_leave_their_places_empty() -> None:
    found = LEXICAL.search(["sort", "zebra", ""], k=3)
    assert found.rows.tolist() == [[1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert np.isneginf(found.scores[found.rows < 0]).all()


def test_equal_scores_go_to_the_smaller_row_even_at_the_cut() -> None:
    assert Lexical.build(["same words"] * 50).search(["words"], k=3).rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("k", [4, 5, 10**9, 2**31 - 1])
def test_k_is_capped_by_the_number_of_texts(k: int) -> None:
    assert LEXICAL.search(["path"], k=k).rows.shape == (1, 4)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_k_below_one_or_no_number_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=r"at least 1"):
        LEXICAL.search(["path"], k=k)


def test_no_queries_give_an_empty_ranking() -> None:
    assert LEXICAL.search([], k=2).rows.shape == (0, 2)


def test_empty_texts_are_kept_in_their_places() -> None:
    assert Lexical.build(["", "path", "  "]).search(["path"], k=3).rows.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("texts", [[], ["", "…"]])
def test_texts_without_a_word_are_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"at least one|holds a word"):
        Lexical.build(texts)


def test_texts_taken_apart_in_pieces_give_the_same_index() -> None:
    pieces = Lexical.from_bags([bag(TEXTS[:1]), bag(TEXTS[1:3]), bag(TEXTS[3:])])
    queries = ["path join", "the list of a socket", "json"]
    assert np.array_equal(pieces.search(queries, k=4).rows, LEXICAL.search(queries, k=4).rows)
    assert pieces.search(queries, k=4).scores.tolist() == LEXICAL.search(queries, k=4).scores.tolist()


def test_a_saved_index_gives_the_same_and_is_mapped(tmp_path: Path) -> None:
    LEXICAL.save(tmp_path)
    again = Lexical.load(tmp_path)
    queries = ["path join", "json string", "nothing of this"]
    before, after = LEXICAL.search(queries, k=4), again.search(queries, k=4)
    assert np.array_equal(before.rows, after.rows) and np.array_equal(before.scores, after.scores)
    assert isinstance(again._bm25.scores["data"], np.memmap)


def test_the_files_hold_no_pickle(tmp_path: Path) -> None:
    LEXICAL.save(tmp_path)
    for path in tmp_path.iterdir():
        if path.suffix == ".npy":
            assert not np.load(path, allow_pickle=False).dtype.hasobject
        else:
            json.loads(path.read_text())


def test_an_array_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    LEXICAL.save(tmp_path)
    np.save(tmp_path / "data.csc.index.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|memmap|object"):
        Lexical.load(tmp_path)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no lexical index"):
        Lexical.load(tmp_path)


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    LEXICAL.save(tmp_path)
    (tmp_path / "analyzer.json").write_text('{"format": "other"}')
    with pytest.raises(VerificationError, match=r"analyzer\.json"):
        Lexical.load(tmp_path)


CORPORA = {
    "chinese": (["如何对列表进行排序", "机器学习模型的训练方法", "今天天气很好，我们去公园散步"], "训练机器学习"),
    "japanese": (["リストの並べ替え", "機械学習モデルの訓練", "今日は天気が良い"], "モデルを訓練する"),
    "korean": (["목록을 정렬하는 방법", "기계학습 모델을 훈련하는 방법", "오늘은 날씨가 좋다"], "모델 훈련"),
    "thai": (["วิธีเรียงลำดับรายการ", "การฝึกโมเดลการเรียนรู้ของเครื่อง", "วันนี้อากาศดีมาก"], "ฝึกโมเดล"),
    "khmer": (["របៀបតម្រៀបបញ្ជី", "ការបណ្តុះបណ្តាលគំរូ", "ថ្ងៃនេះអាកាសធាតុល្អ"], "បណ្តាលគំរូ"),
    "hindi": (["सूची को क्रम में लगाना", "मशीन लर्निंग मॉडल", "आज मौसम अच्छा है"], "मॉडल"),
}


@pytest.mark.parametrize("language", CORPORA)
def test_texts_of_scripts_without_spaces_are_found_by_a_part_of_them(language: str) -> None:
    texts, query = CORPORA[language]
    assert Lexical.build(texts).search([query], k=1).rows.tolist() == [[1]]


def test_one_han_character_is_a_word() -> None:
    assert Lexical.build(["我家的猫", "我家的狗"]).search(["猫"], k=2).rows.tolist() == [[0, -1]]
