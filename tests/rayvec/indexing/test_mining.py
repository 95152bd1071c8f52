"""The rules of mining on numbers worked by hand: six documents around one query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayvec.data.pairs import is_held_out
from rayvec.errors import UserError
from rayvec.indexing import documents, mining
from rayvec.indexing.mining import BELOW_ALL, KEPT, RULES, Keys, Positives, Rules

ROWS = np.array([7, 3, 9, 1, 4, 8])
SCORES = np.array([0.90, 0.80, 0.76, 0.70, 0.60, 0.10])
WRITTEN = np.array([107, 103, 109, 101, 104, 104], np.uint64)  # the last two say the same
NONE = np.array([], np.uint64)
QUERY = 55
#: Two limits are off, so that each test sees the one it is about.
OPEN = Rules(negatives=2, relative_margin=None)


def verdicts(
    rules: Rules,
    *,
    positive_score: float = 0.8,
    texts: Any = NONE,
    known: Any = (),
    bare: Any = None,
    held_out: Any = None,
    document: Any = None,
    query: int = QUERY,
) -> list[str]:
    keys = Keys(
        WRITTEN,
        WRITTEN if bare is None else np.array(bare, np.uint64),
        np.zeros(6, bool) if held_out is None else np.array(held_out),
        np.array(ROWS if document is None else document, np.uint64),
    )
    found = mining.judge(
        rules, SCORES, keys,
        query=query, positive_score=positive_score, texts=np.array(texts, np.uint64), known=np.array(known, np.uint64),
    )  # fmt: skip
    return ["kept" if number == KEPT else RULES[number] for number in found]


def test_only_the_later_of_two_equal_texts_is_dropped_where_nothing_else_is_asked() -> None:
    assert verdicts(OPEN) == ["kept"] * 5 + ["duplicate"]


def test_ninety_five_percent_of_the_positives_score_is_the_limit_and_the_limit_itself_passes() -> None:
    # 0.95 · 0.8 = 0.76: the third candidate stands exactly there.
    expected = ["relative_margin", "relative_margin", "kept", "kept", "kept", "duplicate"]
    assert verdicts(OPEN.replace(relative_margin=0.95)) == expected


def test_the_absolute_margin_is_taken_off_the_positives_score() -> None:
    # 0.8 - 0.1 = 0.7
    expected = ["absolute_margin"] * 3 + ["kept", "kept", "duplicate"]
    assert verdicts(OPEN.replace(absolute_margin=0.1)) == expected


def test_a_margin_below_a_negative_score_lies_below_it() -> None:
    assert mining.limits(Rules(relative_margin=0.95), -0.2)[0] == pytest.approx(-0.21)


def test_a_positive_that_was_not_found_lets_nothing_pass_a_margin() -> None:
    assert verdicts(OPEN.replace(relative_margin=1.0), positive_score=BELOW_ALL) == ["relative_margin"] * 6
    assert verdicts(OPEN, positive_score=BELOW_ALL)[0] == "kept"


def test_positives_are_known_by_document_by_text_and_by_text_without_title() -> None:
    assert verdicts(OPEN, known=[9])[2] == "positive"
    # The first of two equal texts is a positive, and so is the second.
    assert verdicts(OPEN, texts=[104])[4:] == ["positive", "positive"]
    assert verdicts(OPEN, texts=[201], bare=[0, 0, 0, 201, 0, 0])[3] == "positive"


def test_every_window_of_a_positive_is_one_and_of_another_document_the_best_is_taken() -> None:
    windows = [7, 3, 7, 3, 4, 8]
    expected = ["positive", "kept", "positive", "duplicate", "kept", "duplicate"]
    assert verdicts(OPEN, known=[7], document=windows) == expected
    # The text of a window that was a duplicate itself is no duplicate's reason.
    assert verdicts(OPEN, document=[7, 3, 9, 1, 7, 8])[4:] == ["duplicate", "kept"]


def test_the_query_itself_is_no_negative() -> None:
    assert verdicts(OPEN, query=103)[1] == "query"


def test_ranks_scores_and_held_out_documents() -> None:
    assert verdicts(OPEN.replace(rank_start=2))[:3] == ["rank", "rank", "kept"]
    expected = ["max_score", "kept", "kept", "kept", "kept", "min_score"]
    assert verdicts(OPEN.replace(max_score=0.8, min_score=0.6)) == expected
    held_out = [False, True, False, False, False, False]
    assert verdicts(OPEN, held_out=held_out)[1] == "held_out"
    assert verdicts(OPEN.replace(exclude_held_out=False), held_out=held_out)[1] == "kept"


def test_the_first_rule_that_applies_is_counted() -> None:
    rules = OPEN.replace(rank_start=1, max_score=0.5, relative_margin=0.5)
    assert verdicts(rules, known=[7, 3])[:3] == ["rank", "positive", "max_score"]


def test_a_duplicate_of_what_another_rule_dropped_is_kept() -> None:
    assert verdicts(OPEN.replace(rank_start=5)) == ["rank"] * 5 + ["kept"]


def test_top_takes_the_best_ranked() -> None:
    found = np.array([0, KEPT, 0, KEPT, KEPT, KEPT], np.int8)
    assert mining.choose(OPEN, found, QUERY).tolist() == [1, 3]
    assert mining.choose(OPEN.replace(negatives=9), found, QUERY).tolist() == [1, 3, 4, 5]


def test_random_depends_on_query_and_seed_alone_and_draws_all_alike() -> None:
    rules = Rules(negatives=2, choose="random")
    found = np.array([KEPT, 0, KEPT, KEPT, KEPT, 0], np.int8)
    assert mining.choose(rules, found, 5).tolist() == mining.choose(rules, found, 5).tolist()
    drawn = np.array([mining.choose(rules, found, query) for query in range(2000)])
    assert (drawn[:, 0] < drawn[:, 1]).all()  # best first
    # Each of four places is drawn half of the time: 1000 ± 22 (one standard deviation).
    assert all(abs(np.sum(drawn == place) - 1000) < 110 for place in (0, 2, 3, 4))
    other = np.array([mining.choose(rules.replace(seed=1), found, query) for query in range(2000)])
    assert (drawn != other).any()


def test_scores_that_differ_in_their_last_bits_alone_are_ordered_by_row() -> None:
    rows, scores = mining.ordered(np.array([9, 2, 5]), np.array([0.50000003, 0.5, 0.7], np.float32))
    assert rows.tolist() == [5, 2, 9]
    assert scores.tolist() == [0.7, 0.5, 0.5]


def test_texts_that_look_the_same_have_one_hash() -> None:
    assert mining.text_hash("Ｃａｆé  au\nlait") == mining.text_hash("cafe\u0301 au lait")
    assert mining.text_hash("C++") != mining.text_hash("C#")


def test_the_positives_of_a_query_are_those_of_all_its_pairs() -> None:
    positives = Positives.group(
        query=np.array([8, 5, 8, 5, 6], np.uint64),
        text=np.array([11, 12, 13, 0, 15], np.uint64),
        row=np.array([-1, 2, 3, 4, -1]),
    )
    texts, rows = positives.of(0)
    assert (texts.tolist(), rows.tolist()) == ([11, 13], [3])
    assert [part.tolist() for part in positives.of(3)] == [[12], [2, 4]]
    assert [part.tolist() for part in positives.of(4)] == [[15], []]
    assert positives.queries == 3


def test_what_is_saved_is_mapped_back(tmp_path: Path) -> None:
    Keys(WRITTEN, WRITTEN, np.zeros(6, bool), ROWS.astype(np.uint64)).save(tmp_path)
    loaded = Keys.load(tmp_path)
    assert loaded.of(np.array([5, 0])).written.tolist() == [104, 107]
    assert loaded.of(np.array([5, 0])).document.tolist() == [8, 7]
    assert isinstance(loaded.written, np.memmap)


def document(row: int) -> Mapping[str, str | None]:
    return {"id": f"d{row}", "title": None if row == 3 else f"title {row}", "text": f"text {row}"}


def test_documents_are_scanned_by_row_group(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([document(row) for row in range(150)])
    path = tmp_path / "documents.parquet"
    documents.write(table.to_batches(), table.schema, 150, path)  # groups of 64
    keys, places, rows = mining.scan_documents(path, 1, 3, "prepend", pa.array(["d149", "d7", "d64", "elsewhere"]))
    assert dict(zip(places.tolist(), rows.tolist(), strict=True)) == {2: 64, 0: 149}
    assert keys.written[0] == mining.text_hash("title 64\ntext 64")
    assert keys.bare[0] == mining.text_hash("text 64")
    assert keys.held_out.tolist() == [is_held_out(f"d{row}") for row in range(64, 150)]
    first = mining.scan_documents(path, 0, 1, "prepend", pa.array([], pa.string()))[0]
    assert first.written[3] == first.bare[3]
    assert len(Keys.concatenate([first, keys]).bare) == 150
    ignored = mining.scan_documents(path, 0, 1, "ignore", pa.array([], pa.string()))[0]
    assert (ignored.written == ignored.bare).all()


def test_windows_are_scanned_as_their_documents(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(
        [{"id": f"d{row // 2}#{row % 2}", "parent_id": f"d{row // 2}", "text": f"text {row}"} for row in range(64)]
    )
    path = tmp_path / "documents.parquet"
    documents.write(table.to_batches(), table.schema, 64, path)
    keys, places, rows = mining.scan_documents(path, 0, 1, "prepend", pa.array(["d9", "d3#0"]))
    assert (places.tolist(), rows.tolist()) == ([0, 0], [18, 19])
    assert keys.held_out.tolist() == [is_held_out(f"d{row // 2}") for row in range(64)]
    assert len(np.unique(keys.document)) == 32 and (keys.document[::2] == keys.document[1::2]).all()


def test_too_few_ranks_for_the_negatives_are_refused() -> None:
    with pytest.raises(UserError, match="raise rank_stop"):
        Rules.parse({"rank_start": 10, "rank_stop": 12, "negatives": 3})
