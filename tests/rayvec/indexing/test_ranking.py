from __future__ import annotations

import numpy as np

from rayvec.indexing.ranking import NO_SCORE, Ranking


def test_what_stands_after_a_marked_place_moves_up() -> None:
    ranking = Ranking(np.array([[4, 7, 1], [2, 0, -1]]), np.array([[3, 2, 1], [2, 1, NO_SCORE]], np.float32))
    found = ranking.without(np.array([[False, True, False], [False, False, False]]))
    assert found.rows.tolist() == [[4, 1, -1], [2, 0, -1]]
    assert found.scores.tolist() == [[3, 1, NO_SCORE], [2, 1, NO_SCORE]]
