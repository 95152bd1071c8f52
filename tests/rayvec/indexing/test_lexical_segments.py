"""BM25 over segments: the scores of one BM25 over what is live."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.indexing.lexical import Lexical, bag
from rayvec.indexing.lexical_segments import LexicalSegments, Texts

WORDS = np.array([f"word{i}" for i in range(12)])


def texts(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, int(generator.integers(1, 9)))) for _ in range(count)]


BASE, DELTA = texts(60, 1), texts(25, 2)
QUERIES = ["word1", "word2 word3 word2", "word4 nothing", "nothing"]


def over(dropped: tuple[list[int], list[int]], delta: list[str] = DELTA) -> LexicalSegments:
    base = Lexical.build(BASE)
    second = Lexical.from_bags([bag(delta)], average=base.average) if any(delta) else None
    gone = [np.array(rows, np.int64) if rows else None for rows in dropped]
    live = len(BASE) + len(delta) - sum(map(len, dropped))
    return LexicalSegments(
        [Texts.of(0, len(BASE), base, gone[0]), Texts.of(len(BASE), len(delta), second, gone[1])], live
    )


@pytest.mark.parametrize("dropped", [([], []), ([0, 5, 59], []), ([], [1]), (list(range(0, 60, 2)), [0, 24])])
def test_scores_are_those_of_one_index_over_the_live_texts(dropped: tuple[list[int], list[int]]) -> None:
    everything = BASE + DELTA
    live = [row for row in range(85) if row not in dropped[0] and row - 60 not in dropped[1]]
    fresh = Lexical.from_bags([bag(everything[row] for row in live)], average=Lexical.build(BASE).average)
    mine, theirs = over(dropped).search(QUERIES, 85), fresh.search(QUERIES, 85)
    for query in range(len(QUERIES)):
        expected = {live[row]: score for row, score in theirs.hits(query)}
        assert dict(mine.hits(query)) == pytest.approx(expected, rel=1e-5)


def test_a_score_differs_from_a_fresh_builds_by_no_more_than_the_drift() -> None:
    long = [" ".join(WORDS) + " " + text for text in DELTA]
    segments = over(([], []), long)
    drift = segments.drift()
    assert drift > 0.3
    mine, theirs = segments.search(QUERIES, 85), Lexical.build(BASE + long).search(QUERIES, 85)
    for query in range(3):
        expected = dict(theirs.hits(query))
        ratios = [score / expected[row] for row, score in mine.hits(query)]
        assert max(max(ratios), 1 / min(ratios)) <= 1 + drift + 1e-5
        assert max(ratios) - min(ratios) > 1e-3  # and some do differ


def test_there_is_no_drift_while_the_mean_length_stays() -> None:
    assert over(([], []), BASE).drift() == pytest.approx(0, abs=1e-9)


def test_a_segment_without_words_counts_as_texts_and_finds_nothing() -> None:
    segments = over(([], []), ["", ""])
    found = segments.search(["word1"], 100)
    assert found.rows.shape == (1, 62) and found.rows.max() < 60
    fresh = Lexical.from_bags([bag([*BASE, "", ""])], average=Lexical.build(BASE).average)
    assert found.scores[0, 0] == pytest.approx(fresh.search(["word1"], 1).scores[0, 0], rel=1e-5)


def test_a_term_that_only_dropped_texts_hold_finds_nothing() -> None:
    base = Lexical.build(["alone here", "others there"])
    segments = LexicalSegments([Texts.of(0, 2, base, np.array([0]))], 1)
    assert segments.search(["alone", "others"], 2).rows.tolist() == [[-1], [1]]


@pytest.mark.parametrize("k", [0, -1, True])
def test_a_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        over(([1], [])).search(["word1"], k)
