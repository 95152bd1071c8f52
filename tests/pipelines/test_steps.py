"""Steps of a line: what is done is skipped, what fails is done again, what follows a change is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines._steps import Line, Step
from rayvec import storage


def step(folder: Path, name: str, asked: str = "", runs: list[str] | None = None, fails: bool = False) -> Step:
    def run() -> dict[str, int]:
        if runs is not None:
            runs.append(name)
        if fails:
            raise ArithmeticError(name)
        (folder / name).touch()
        return {"rows": 1200}

    return Step(f"work on {name}", str(folder / name), run, name, asked)


def test_a_step_that_is_done_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").touch()
    runs: list[str] = []
    line = Line([step(tmp_path, "a", runs=runs)])
    assert line.pending == []
    line.run()
    assert runs == [] and "[1/1] work on a: done already" in capsys.readouterr().out


def test_a_step_is_run_until_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[str] = []
    with pytest.raises(ArithmeticError):
        Line([step(tmp_path, "a", runs=runs, fails=True), step(tmp_path, "b", runs=runs)]).run()
    for _ in range(2):
        Line([step(tmp_path, "a", runs=runs), step(tmp_path, "b", runs=runs)]).run()
    assert runs == ["a", "a", "b"]
    assert "rows 1,200" in capsys.readouterr().out


def test_a_line_with_a_record_runs_again_what_was_asked_something_else_and_what_follows(tmp_path: Path) -> None:
    record = str(tmp_path / "line.json")
    runs: list[str] = []

    def go(second: str, fails: bool = False) -> None:
        names = {"a": "1", "b": second, "c": "1"}
        steps = [step(tmp_path, n, asked, runs, fails=fails and n == "b") for n, asked in names.items()]
        Line(steps, record).run()

    go("1")
    go("1")
    assert runs == ["a", "b", "c"]
    with pytest.raises(ArithmeticError):
        go("2", fails=True)
    go("2")
    assert runs == ["a", "b", "c", "b", "b", "c"]
    assert {name: kept["asked"] for name, kept in storage.read_json(record).items()} == {"a": "1", "b": "2", "c": "1"}
