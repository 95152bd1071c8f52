"""Trade-offs: which choices no other beats, and that the pictures are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayvec.evaluation.trade_offs import Choice, draw_choices, draw_dimensions, pareto


def beaten(costs: np.ndarray, row: int) -> bool:
    return any((other <= costs[row]).all() and (other < costs[row]).any() for other in costs)


def test_the_front_is_what_nothing_else_beats() -> None:
    costs = np.random.default_rng(0).integers(0, 12, (80, 3))
    assert pareto(costs).tolist() == [not beaten(costs, row) for row in range(80)]


def test_equal_choices_stand_or_fall_together() -> None:
    assert pareto([[1, 1], [1, 1], [2, 1]]).tolist() == [True, True, False]


def test_pictures_are_png_and_small(tmp_path: Path) -> None:
    choices = [Choice(100.0 * i, 0.5 + 0.05 * i, 9000.0 / i, f"form {i % 3}", f"{64 * i} pca") for i in range(1, 9)]
    draw_choices(choices, 0.8, 5, "recall@10", "eight", str(tmp_path / "choices.png"))
    draw_dimensions([0.5, 0.9, 1.0], {"pca": {2: 0.9, 1: 0.6}}, str(tmp_path / "dimensions.png"))
    for name in ("choices.png", "dimensions.png"):
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) < 100_000


def test_nothing_to_compare_is_still_a_picture(tmp_path: Path) -> None:
    draw_dimensions([1.0], {}, str(tmp_path / "dimensions.png"))
    draw_choices([Choice(1, 1, 1, "Flat", "1 (all)")], 0.9, None, "recall@10", "one", str(tmp_path / "choices.png"))
    assert {path.name for path in tmp_path.iterdir()} == {"dimensions.png", "choices.png"}
