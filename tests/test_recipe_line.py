"""The recipe line's benchmark on a random Llama: every encoder is measured for every seed, and done work stays done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from benchmarks.recipe_line import BASES, LINE, METRICS, Line, command, ordered, render, run, spread
from rayvec.data.pairs import is_held_out
from rayvec.errors import UserError
from rayvec.evaluation.sts import read_pairs
from tests.models import SENTENCES, tiny_llama

torch.set_num_threads(1)
SEEDS = (0, 1)
SMALL: dict[str, Any] = {"steps": 1, "batch_size": 8, "max_length": 24, "stage": {"lora": {"rank": 2}}}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Docstrings of which twelve are held out, four judged pairs, one step a stage."""
    folder = tmp_path_factory.mktemp("line")
    names = [f"module.function_{i}" for i in range(2000)]
    held_out = [name for name in names if is_held_out(name)][:12]
    kept = held_out + [name for name in names if not is_held_out(name)][:40]
    texts = [f"Do what {name} does.\n\n{SENTENCES[i % 4]} And then {name} is done." for i, name in enumerate(kept)]
    pq.write_table(
        pa.table({"id": kept, "title": [f"{name}(x)" for name in kept], "text": texts}), folder / "d.parquet"
    )
    rows = [
        f'"{SENTENCES[i]}","{SENTENCES[j]}",{score}' for i, j, score in ((0, 0, 5), (0, 3, 2), (1, 1, 4.5), (1, 2, 0))
    ]
    (folder / "sts.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Line(
        output=folder / "out",
        decoder=str(tiny_llama(folder / "decoder")),
        documents=str(folder / "d.parquet"),
        overrides={"mntp": SMALL, "simcse": SMALL, "supervised": SMALL},
        pairs=read_pairs(str(folder / "sts.csv")),
        queries=10,
        max_length=48,
    )


@pytest.fixture(scope="module")
def result(line: Line) -> dict[str, Any]:
    return run(line, SEEDS)


def test_every_encoder_is_measured_for_every_seed(result: dict[str, Any]) -> None:
    assert list(result["systems"]) == [*BASES, *(step.name for step in LINE)]
    for row in result["systems"].values():
        assert list(row) == list(METRICS)
        assert all(len(value["seeds"]) == len(SEEDS) for value in row.values())
    assert (result["queries"], result["pairs"]) == (10, 4)


def test_seeds_move_what_is_trained_and_nothing_else(result: dict[str, Any]) -> None:
    deviations = {name: row["uniformity"]["deviation"] for name, row in result["systems"].items()}
    assert {name for name, deviation in deviations.items() if deviation == 0} == set(BASES)


def test_the_files_say_what_the_result_says(line: Line, result: dict[str, Any]) -> None:
    assert json.loads((line.output / "line.json").read_text(encoding="utf-8")) == result
    assert (line.output / "line.md").read_text(encoding="utf-8") == render(result)
    assert (line.output / "line.png").read_bytes().startswith(b"\x89PNG")
    table = render(result)
    assert "| + MNTP + SimCSE, seed 1" in table and "| + MNTP > causal, weighted mean" in table


def test_what_is_done_is_not_done_again(line: Line, result: dict[str, Any]) -> None:
    written = {path: path.stat().st_mtime_ns for path in line.output.glob("seed-*/**/*.json")}
    assert run(line, SEEDS) == result
    assert {path: path.stat().st_mtime_ns for path in line.output.glob("seed-*/**/*.json")} == written


def test_spread() -> None:
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "deviation": 1.0, "seeds": [1.0, 2.0, 3.0]}


def test_order_counts_the_seeds_that_follow_it() -> None:
    values = {"high": [0.5, 0.2, 0.4], "low": [0.1, 0.3, 0.4]}
    found = {name: [{"per_query": [value] * 4} for value in row] for name, row in values.items()}
    systems = {name: {"ndcg@10": spread(row)} for name, row in values.items()}
    order = ordered(found, systems, "high", "low")
    assert order["ndcg@10"]["seeds_above"] == 1
    assert order["ndcg@10"]["mean"] == pytest.approx(0.1)
    assert "stsb" not in order


def test_a_change_of_no_stage_is_refused(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(command, ["--output", str(tmp_path), "--set", "mtnp.steps=3"])
    assert isinstance(outcome.exception, UserError)
    assert "mtnp" in str(outcome.exception) and "mntp, simcse, supervised" in str(outcome.exception)
