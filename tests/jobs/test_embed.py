"""The embed job as a program: its exit statuses, and that killing it at any moment loses and doubles nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines._ray import worker_environment
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.errors import UserError
from rayvec.lease import sole_writer
from tests.rayvec.encoding.test_publish import state

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
RECORDS, UNIT_ROWS = 3000, 50


def start(*arguments: str) -> subprocess.Popen[str]:
    """The job as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.embed", *arguments],
        cwd=ROOT,
        env={**os.environ, **worker_environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the job."""
    with start(*arguments) as process:
        out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def settings(source: Path, output: Path) -> list[str]:
    values = {"source.path": source, "output": output, "unit_rows": UNIT_ROWS}
    return ["--recipe", "hash.embed", *(part for key, value in values.items() for part in ("--set", f"{key}={value}"))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand records, one broken, one with the id of another."""
    lines = [json.dumps({"id": f"d{i}", "text": f"record {i} of many " * (i % 30 + 1)}) for i in range(1, RECORDS)]
    lines[700:700] = ["{broken", json.dumps({"id": "d3", "text": "the id of an earlier one"})]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def undisturbed(source: Path, output: Path) -> None:
    """The same run without Ray and without any disturbance: one loop over the units."""
    from pipelines.embed import EmbedConfig, plan_and_work
    from rayvec.encoding.publish import manifest, publish, settle_duplicates
    from rayvec.encoding.work import complete, prepare
    from rayvec.modeling.encoder import load_encoder

    encoder = load_encoder("hash")
    values: dict[str, Any] = {"source": {"path": str(source)}, "encoder": "hash", "unit_rows": UNIT_ROWS}
    plan, work = plan_and_work(EmbedConfig.parse(values), str(output))
    records = [complete(work, unit, prepare(work, unit, encoder), encoder) for unit in plan.units]
    publish(work.sink, manifest(plan, settle_duplicates(work.sink, plan.units, records), work.sink, "hash"))


@pytest.fixture(scope="module")
def output(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left that was killed at a random moment, with its workers, and then run again."""
    output = tmp_path_factory.mktemp("runs") / "out"
    committed = random.randint(1, 20)
    print(f"killed after {committed} units")
    with start(*settings(corpus, output)) as process:
        while len(list((output / "units").glob("*.json"))) < committed:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with pytest.raises(UserError, match="no finished embeddings"):  # a reader sees nothing of it yet
        EmbeddingsDataset.open(str(output))
    status, out, err = run(*settings(corpus, output))
    assert status == 0, err
    assert "embed: done" in out
    return output


def test_a_killed_run_that_is_run_again_ends_as_one_that_was_never_disturbed(
    corpus: Path, output: Path, tmp_path: Path
) -> None:
    undisturbed(corpus, tmp_path)
    assert state(output) == state(tmp_path)


def test_the_second_run_did_not_do_again_what_was_done(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert 0 < report["units_resumed"] < report["units"] == 61


def test_verify_reads_everything_again(output: Path) -> None:
    status, out, _ = run("--verify", str(output))
    assert (status, "verified" in out) == (0, True)


def test_status_3_another_encoder_on_the_same_output(corpus: Path, output: Path) -> None:
    status, _, err = run(*settings(corpus, output), "--set", "encoder=hash:32")
    assert status == 3
    assert err.startswith("error: ") and "dim" in err and err.count("\n") == 1


def test_status_4_another_writer(corpus: Path, output: Path) -> None:
    with sole_writer(str(output)):
        status, _, err = run(*settings(corpus, output))
    assert status == 4
    assert f"process {os.getpid()}" in err


def test_status_5_a_store_that_is_away(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**environment, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    status, _, err = run("--recipe", "hash.embed", f"--set=source.path={corpus}", "--set=output=s3://bucket/out")
    assert status == 5
    assert err.startswith("error: s3://bucket/out: the store cannot be reached") and err.count("\n") == 1


@pytest.mark.nightly
def test_status_143_stopped(corpus: Path, tmp_path: Path) -> None:
    with start(*settings(corpus, tmp_path)) as process:
        while not list((tmp_path / "units").glob("*.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-1] == "error: stopped; run the same command again to go on"


def test_status_6_more_quarantined_than_allowed(corpus: Path, output: Path) -> None:
    status, _, err = run(*settings(corpus, output), "--set", "max_quarantine=0")
    assert status == 6
    assert "1 of 3001 records were quarantined (invalid_json 1)" in err


def test_status_7_a_flipped_bit(output: Path, tmp_path: Path) -> None:
    part = sorted((output / "data").iterdir())[3]
    whole = part.read_bytes()
    part.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    try:
        status, _, err = run("--verify", str(output))
    finally:
        part.write_bytes(whole)
    assert status == 7
    assert part.name in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--recipe", "hash.embedd"], "hash.embed"),
        (["--recipe", "hash.embed", "--set", "sauce.path=x"], "sauce"),
        (["--recipe", "hash.embed", "--set", "source.path=/nowhere.jsonl", "--set", "output=OUT"], "/nowhere.jsonl"),
        (["--verify", "/nowhere"], "/nowhere"),
    ],
)
def test_status_2_a_mistake_is_told_in_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    status, _, err = run(*[argument.replace("OUT", str(tmp_path / "out")) for argument in arguments])
    assert status == 2
    assert named in err and err.count("\n") == 1 and "Traceback" not in err
