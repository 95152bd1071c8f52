"""The demo's steps, and the table of what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.demo import METRICS, _steps, _write_table, demo
from pipelines.recipes.tiny import demo as recipe
from rayvec import storage
from rayvec.errors import UserError


def test_each_stage_starts_where_the_one_before_ended(tmp_path: Path) -> None:
    by_folder = {step.name: step.run.args[0] for step in _steps(recipe(), tmp_path) if "train" in step.title}  # type: ignore[attr-defined]
    assert by_folder["simcse"].start == by_folder["mntp"].output
    assert by_folder["supervised"].start == by_folder["simcse"].output


def test_an_object_store_is_no_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="output = s3://bucket/demo: give a local or mounted folder"):
        demo(recipe().replace(output="s3://bucket/demo"))
    assert not list(tmp_path.iterdir())


def test_training_never_sees_what_is_measured(tmp_path: Path) -> None:
    for step in _steps(recipe(), tmp_path):
        if step.title.startswith("train"):
            data = step.run.args[0].data  # type: ignore[attr-defined]
            assert data.kind == "pairs" or data.exclude_held_out


def test_the_table_has_a_row_a_system_and_says_how_far_hybrid_is_above(tmp_path: Path) -> None:
    row = {metric: {"mean": 0.5, "low": 0.4, "high": 0.6} for metric in METRICS}
    comparison = {"a": "hybrid", "b": "lexical", "metric": "ndcg@10", "difference": 0.03, "p_value": 0.002}
    (tmp_path / "measure").mkdir()
    storage.write_json(
        tmp_path / "measure" / "shipped.json", {"queries": 10, "documents": 20, "comparisons": [comparison]}
    )
    _write_table(tmp_path, {"BM25": row, "hybrid": row})
    text = (tmp_path / "table.txt").read_text()
    assert "| BM25" in text
    assert "hybrid - BM25: +0.030 ndcg@10, p = 0.002" in text
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
