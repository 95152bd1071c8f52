"""The serve job from a shell: what is wrong is one line and a status, before Ray starts. See also rayvec/serving."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs._cli import main
from jobs.serve import command
from tests.services import write_service_index

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_service_index(tmp_path_factory.mktemp("serve"))


def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str]:
    """Exit status and the one line of stderr."""
    arguments = [part for option in options for part in ("--set", str(option))]
    monkeypatch.setattr(sys, "argv", ["serve", "--recipe", "hash.serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert isinstance(ended.value.code, int)
    return ended.value.code, line


def test_an_index_made_by_another_encoder_is_status_3(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failure(monkeypatch, capsys, f"index={index}", "encoder=hash:32")
    assert status == 3
    assert "weights" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["index=/nowhere/at/all"], "holds no index"),
        ([], "--set index=DIR"),
        (["index=x", "prot=8000"], "prot"),
        (["index=x", "port=0"], "port"),
        (["index=x", "host=0.0.0.0"], "no API keys are set"),
    ],
)
def test_a_mistake_is_status_2(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failure(monkeypatch, capsys, *options)
    assert status == 2
    assert said in line


def test_a_port_in_use_is_status_2(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = failure(monkeypatch, capsys, f"index={index}", f"port={port}")
    assert status == 2
    assert f"port {port} on 127.0.0.1 is in use" in line


def test_the_job_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "serve.py"), "--recipe", "hash.serve", "--dry-run"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, "host: 127.0.0.1" in done.stdout) == (0, True), done.stderr
