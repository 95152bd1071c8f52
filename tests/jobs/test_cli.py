"""The one command line of all jobs, on a job that only gives its configuration back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from jobs._cli import job, main, resolve
from pipelines.recipes import get_recipe, recipes
from rayvec.config import Config
from rayvec.errors import MismatchError, UserError
from rayvec.serving.config import ServeConfig

ROOT = Path(__file__).resolve().parent.parent.parent


def echo(config: ServeConfig) -> dict[str, object]:
    """Give back what was asked for."""
    return {"port": config.port}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(job("echo", ServeConfig, echo), list(arguments), catch_exceptions=False)
    return result.output


def exit_status(command: click.Command, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["job", *arguments])
    with pytest.raises(SystemExit) as ended:
        main(command)
    return ended.value.code


def test_sigterm_is_one_line_and_status_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: ServeConfig) -> dict[str, object]:
        with suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_status(job("echo", ServeConfig, stopped), monkeypatch=monkeypatch) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: stopped; run the same command again to go on\n"


def test_the_help_lists_recipes_with_what_they_are() -> None:
    assert "hash.serve" in run("--help")


def test_recipe_then_file_then_set(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("port: 1001\nindex: there\n")
    config = resolve(ServeConfig, "hash.serve", str(tmp_path / "c.yaml"), ("port=1002",))
    assert (config.port, config.index) == (1002, "there")


def test_a_file_and_overrides_are_laid_over_each_other_without_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("limits: {request_tokens: 7}\n")
    config = resolve(ServeConfig, None, str(tmp_path / "c.yaml"), ("limits.batch_tokens=9",))
    assert (config.limits.request_tokens, config.limits.batch_tokens) == (7, 9)


def test_a_dry_run_prints_the_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(run("--recipe", "hash.serve", "--set", "port=1003", "--dry-run"))
    assert ServeConfig.from_yaml(tmp_path / "c.yaml").port == 1003


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "hash.serv"], "did you mean hash.serve?"),
        (["--set", "prot=1"], "unknown key 'prot'; known keys here: index"),
        (["--set", "port=x"], "port = 'x'"),
        (["--set", "port"], "write --set key=value"),
        (["--config", "none.yaml"], "none.yaml does not exist"),
        (["--nonsense"], "No such option"),
    ],
)
def test_the_users_mistakes_are_one_line_and_status_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(job("echo", ServeConfig, echo), *arguments, monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


class Other(Config):
    """Another thing that the verb does."""

    kind: Literal["other"] = "other"
    size: int = 1


def give_size(config: Other) -> dict[str, object]:
    """Give back the size."""
    return {"size": config.size}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "hash.serve", "--set", "port=1004"], "port  1,004"),
        (["--set", "port=1004"], "port  1,004"),
        (["--set", "kind=other", "--set", "size=7"], "size  7"),
        (["--config", "other.yaml"], "size  8"),
        (["--help"], "Give back the size."),
    ],
)
def test_a_verb_runs_what_the_recipe_or_the_kind_names(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text(Other(size=8).to_yaml())
    command = job("echo", ServeConfig, echo, (Other, give_size))
    assert told in CliRunner().invoke(command, arguments, catch_exceptions=False).output


def test_other_errors_keep_their_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: ServeConfig) -> dict[str, object]:
        raise MismatchError("another encoder")

    assert exit_status(job("fail", ServeConfig, fail), monkeypatch=monkeypatch) == 3


def test_every_recipe_builds_and_survives_yaml(tmp_path: Path) -> None:
    for name, recipe in recipes().items():
        config = recipe()
        assert type(config).parse(config.model_dump(mode="json")) == config, name


def test_a_recipe_of_another_job_is_unknown_here() -> None:
    with pytest.raises(UserError, match=r"no recipe 'hash\.embed'"):
        get_recipe("hash.embed", ServeConfig)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "jobs").glob("*.py") if not p.stem.startswith("_")))
def test_every_job_runs_as_a_module_and_as_a_script(name: str) -> None:
    for how in (["-m", f"jobs.{name}"], [f"jobs/{name}.py"]):
        result = subprocess.run(
            [sys.executable, *how, "--help"],
            cwd=ROOT,
            env={"PYTHONPATH": "platform", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert name == "doctor" or "--recipe" in result.stdout  # it has nothing to configure


def test_configurations_are_frozen() -> None:
    for recipe in recipes(Config).values():
        with pytest.raises(ValueError, match="frozen"):
            recipe().__setattr__("output", "x")
        break
