"""Curves: lines on disk, events for TensorBoard, a picture."""

from __future__ import annotations

from pathlib import Path

from rayvec.training.curves import MetricsLog, draw, read_metrics
from rayvec.training.loop import Progress


def _progress(step: int) -> Progress:
    return Progress(step, 10, {"loss": 1.0 / step, "learning_rate": 0.1}, 100.0, 5.0)


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
