"""Fusion, by examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.indexing.hybrid import hybrid, reciprocal_rank_fusion, weighted_fusion
from rayvec.indexing.ranking import NO_SCORE, Ranking


def ranking(rows: list[list[int]], scores: list[list[float]] | None = None) -> Ranking:
    values = scores or [[float(-place) for place, _ in enumerate(row)] for row in rows]
    return Ranking(np.array(rows, dtype=np.int64), np.array(values, dtype=np.float32))


def test_reciprocal_rank_fusion_worked_by_hand() -> None:
    fused = reciprocal_rank_fusion([ranking([[7, 3, 5]]), ranking([[3, 9, 7]])], k=4)
    assert fused.rows.tolist() == [[3, 7, 9, 5]]
    assert fused.scores[0] == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63])


def test_weights_scale_each_rankings_points() -> None:
    fused = reciprocal_rank_fusion([ranking([[1, 2]]), ranking([[3, 4]])], k=4, constant=0, weights=[1, 3])
    assert fused.rows.tolist() == [[3, 4, 1, 2]]
    assert fused.scores[0] == pytest.approx([3.0, 1.5, 1.0, 0.5])


def test_weighted_fusion_worked_by_hand() -> None:
    dense = ranking([[1, 2, 3]], [[0.9, 0.8, 0.7]])  # to 1, 0.5, 0
    lexical = ranking([[3, 4, 1]], [[12.0, 9.0, 2.0]])  # to 1, 0.7, 0
    fused = weighted_fusion([dense, lexical], k=4, weights=[2, 1])
    assert fused.rows.tolist() == [[1, 2, 3, 4]]
    assert fused.scores[0] == pytest.approx([2.0, 1.0, 1.0, 0.7], abs=1e-5)


def test_each_query_is_scaled_by_itself() -> None:
    fused = weighted_fusion([ranking([[1, 2], [1, 2]], [[100.0, 50.0], [0.2, 0.1]])], k=2)
    assert fused.scores[0] == pytest.approx(fused.scores[1])


def test_equal_scores_all_count_one() -> None:
    assert weighted_fusion([ranking([[5, 4]], [[2.0, 2.0]])], k=2).scores.tolist() == [[1.0, 1.0]]


def test_ties_go_to_the_smaller_row_whichever_ranking_comes_first() -> None:
    a, b = ranking([[8, 1]]), ranking([[2, 6]])
    assert reciprocal_rank_fusion([a, b], k=4).rows.tolist() == [[2, 8, 1, 6]]
    assert reciprocal_rank_fusion([b, a], k=4).rows.tolist() == [[2, 8, 1, 6]]


def test_empty_places_give_no_points_and_fill_the_end() -> None:
    lexical = Ranking(
        np.array([[4, -1], [-1, -1]]), np.array([[3.0, NO_SCORE], [NO_SCORE, NO_SCORE]], dtype=np.float32)
    )
    for fuse in (reciprocal_rank_fusion, weighted_fusion):
        fused = fuse([lexical, ranking([[4, 5], [6, 7]])], 4)
        assert fused.rows.tolist() == [[4, 5, -1, -1], [6, 7, -1, -1]]
        assert np.isneginf(fused.scores[:, 2:]).all() and np.isfinite(fused.scores[:, :2]).all()


def test_k_is_capped_by_the_candidates() -> None:
    assert reciprocal_rank_fusion([ranking([[1, 2]])], k=2**31 - 1).rows.shape == (1, 2)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_a_k_below_one_or_no_number_is_refused(k: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        reciprocal_rank_fusion([ranking([[1]])], k=k)


def test_rankings_of_different_queries_are_refused() -> None:
    with pytest.raises(UserError, match="different numbers of queries"):
        reciprocal_rank_fusion([ranking([[1]]), ranking([[1], [2]])], k=1)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="one weight of 0 or more"):
        weighted_fusion([ranking([[1]]), ranking([[2]])], k=1, weights=weights)


def test_nothing_to_fuse_is_refused() -> None:
    with pytest.raises(UserError, match="at least one ranking"):
        reciprocal_rank_fusion([], k=1)


def test_hybrid_gives_one_to_what_is_best_in_both_and_counts_dense_for_half_of_lexical() -> None:
    lexical = ranking([[1, 2, 3]], [[9.0, 5.0, 1.0]])  # to 1, 0.5, 0
    dense = ranking([[1, 3, 2]], [[0.9, 0.8, 0.4]])  # to 1, 0.8, 0
    fused = hybrid(lexical, dense, k=3)
    assert fused.rows.tolist() == [[1, 2, 3]]
    assert fused.scores[0] == pytest.approx([1.0, 0.5 / 1.5, 0.5 * 0.8 / 1.5], abs=1e-5)
