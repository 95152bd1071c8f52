"""Curves: lines on disk, events for TensorBoard, first and last values, and what is drawn in which panel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.training.curves import (
    FEW,
    MANY,
    Line,
    MetricsLog,
    draw,
    figure,
    first_values,
    last_values,
    moving_mean,
    panels,
    read_metrics,
    trend,
)
from rayvec.training.loop import Progress

#: A run that is measured before its first step and every two, on two sets by one metric and on one by another; of the
#: last set one measurement failed.
RUN: list[Line] = [
    {"step": 0, "eval/py docs/ndcg@10": 0.1, "eval/scifact/ndcg@10": 0.3, "eval/sts/spearman": 0.5},
    {"step": 1, "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "loss": 2.0, "learning_rate": 0.2, "new": 7.0},
    {"step": 2, "eval/py docs/ndcg@10": 0.2, "eval/scifact/ndcg@10": 0.4, "eval/sts/spearman": math.nan},
    {"step": 4, "eval/scifact/ndcg@10": 0.6, "eval/sts/spearman": 0.7},
]


def _progress(step: int) -> Progress:
    return Progress(step, 10, {"loss": 1.0 / step, "learning_rate": 0.1}, 100.0, 5.0)


def axes(metrics: list[Line]) -> dict[str, Any]:
    """The drawn panels by title."""
    return {panel.get_title(): panel for panel in figure(metrics, "a run").axes}


def test_lines_events_and_picture(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.logged(_progress(step))
    log.close()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert list((tmp_path / "tensorboard").iterdir())
    draw(metrics, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_no_numbers_no_picture(tmp_path: Path) -> None:
    draw(read_metrics(tmp_path / "metrics.jsonl"), tmp_path / "curves.png", "a run")
    assert not (tmp_path / "curves.png").exists()


def test_evaluations_stand_on_lines_of_their_own_and_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    log = MetricsLog(tmp_path, trackers=(), say=said.append)
    log.evaluated(0, {"eval/sts/spearman": 0.5})
    log.logged(_progress(1))
    log.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first == {"step": 0, "eval/sts/spearman": 0.5}
    assert second == {"step": 1, "loss": 1.0, "learning_rate": 0.1, "tokens_per_second": 100.0}
    assert said[0] == "step 0  eval/sts/spearman 0.5000"


def test_a_continued_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.logged(_progress(1))
    history = log.history
    log.logged(_progress(2))
    log.close()
    again = MetricsLog(tmp_path, history, start_step=1)
    again.logged(_progress(2))
    again.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_first_and_last_value_of_each_name_wherever_it_stands() -> None:
    assert first_values(RUN[:3]) == {
        "eval/py docs/ndcg@10": 0.1,
        "eval/scifact/ndcg@10": 0.3,
        "eval/sts/spearman": 0.5,
        "loss": 3.0,
        "learning_rate": 0.1,
        "new": 7.0,
    }
    last = last_values(RUN)
    assert (last["loss"], last["eval/py docs/ndcg@10"], last["eval/scifact/ndcg@10"]) == (2.0, 0.2, 0.6)
    assert "step" not in last


def test_evaluation_has_a_panel_a_metric_and_a_curve_a_set() -> None:
    found = {panel.style.title: panel.curves for panel in panels(RUN)}
    assert list(found) == ["loss", "learning rate", "new", "evaluation: ndcg@10", "evaluation: spearman"]
    assert found["loss"] == {"loss": [(1, 3.0), (2, 2.0)]}
    assert found["new"] == {"new": [(2, 7.0)]}
    assert found["evaluation: ndcg@10"] == {
        "py docs": [(0, 0.1), (2, 0.2)],
        "scifact": [(0, 0.3), (2, 0.4), (4, 0.6)],
    }
    assert found["evaluation: spearman"] == {"sts": [(0, 0.5), (4, 0.7)]}  # nothing is drawn where there is no number


def test_evaluations_are_drawn_with_markers_and_a_legend() -> None:
    drawn = axes(RUN)
    lines = drawn["evaluation: ndcg@10"].get_lines()
    assert [(line.get_label(), line.get_marker()) for line in lines] == [("py docs", "o"), ("scifact", "o")]
    assert [text.get_text() for text in drawn["evaluation: ndcg@10"].get_legend().get_texts()] == ["py docs", "scifact"]
    (loss,) = drawn["loss"].get_lines()
    assert loss.get_marker() == "None" and drawn["loss"].get_legend() is None
    assert drawn["new"].get_lines()[0].get_marker() == "o"  # a single point is seen
    # All panels span the same steps, with room for a marker at the first.
    assert {panel.get_xlim() for panel in drawn.values()} == {(-0.08, 4.08)}


def test_many_sets_look_different_and_their_legend_hides_nothing() -> None:
    drawn = axes([{"step": s, **{f"eval/{n:02}/ndcg": n + s for n in range(2 * FEW)}} for s in (0, 1)])[
        "evaluation: ndcg"
    ]
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.get_lines()}
    assert len(looks) == 2 * FEW
    drawn.figure.canvas.draw()
    legend, panel = drawn.get_legend().get_window_extent(), drawn.get_window_extent()
    assert legend.x0 > panel.x1


def test_many_noisy_points_are_drawn_faint_below_their_mean() -> None:
    values = [5.0 + (-1) ** step for step in range(MANY)]
    both = axes([{"step": s, "loss": v, "learning_rate": v} for s, v in enumerate(values)])
    points, mean = both["loss"].get_lines()
    assert points.get_alpha() < 1 and len(points.get_xdata()) == MANY
    assert np.ptp(mean.get_ydata()) < 1 < np.ptp(points.get_ydata())
    assert len(both["learning rate"].get_lines()) == 1  # is as it was set: no noise
    fewer = axes([{"step": s, "loss": v} for s, v in enumerate(values[1:])])
    assert len(fewer["loss"].get_lines()) == 1


def test_the_trend_ends_where_its_mean_would_be_of_few() -> None:
    steps = np.arange(200.0)
    at, means = trend(steps, 2 * steps)
    assert (at[0], at[-1]) == (5, 194)  # a quarter of the window of 20 at each end
    np.testing.assert_allclose(means, 2 * at)  # means of a line are on it, at both ends too


def test_the_trend_on_a_logarithmic_scale_is_not_lifted_by_one_outlier() -> None:
    values = np.ones(200)
    values[100] = 1e4
    assert trend(np.arange(200.0), values)[1].max() == pytest.approx(1 + (1e4 - 1) / 21)
    assert trend(np.arange(200.0), values, log=True)[1].max() == pytest.approx(1e4 ** (1 / 21))


@pytest.mark.parametrize(
    ("values", "scale"), [([1.0, 99.0], "linear"), ([1.0, 100.0], "log"), ([0.0, 100.0], "linear")]
)
def test_values_that_span_widely_are_drawn_on_a_logarithmic_scale(values: list[float], scale: str) -> None:
    lines = [{"step": s, "loss": v, "learning_rate": v, "eval/a/mrr": v} for s, v in enumerate(values)]
    drawn = axes(lines)
    assert drawn["loss"].get_yscale() == scale
    assert drawn["learning rate"].get_yscale() == drawn["evaluation: mrr"].get_yscale() == "linear"


def test_a_moving_mean_worked_by_hand() -> None:
    values = np.array([1.0, 2.0, 6.0, 3.0, 3.0, 9.0])
    np.testing.assert_allclose(moving_mean(values, 4), [1.0, 3.0, 3.0, 4.6, 5.0, 9.0])
    np.testing.assert_allclose(moving_mean(values, 1), values)
