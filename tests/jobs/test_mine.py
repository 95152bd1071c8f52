"""The mine job from a shell: the user's mistakes are one line and a status, before Ray is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipelines._ray import worker_environment
from rayvec.modeling.hash_encoder import HashEncoder
from tests.artifacts import write_index

ENCODER = HashEncoder(64)
TEXTS = ["one text", "another text"]


def run(*assignments: str) -> subprocess.CompletedProcess[str]:
    flags = [word for assignment in assignments for word in ("--set", assignment)]
    return subprocess.run(
        [sys.executable, "-m", "jobs.mine", "--recipe", "tiny.mine", *flags],
        env={**os.environ, **worker_environment()}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run("pairs=p.jsonl", f"output={tmp_path}/mined.jsonl")
    assert (done.returncode, done.stderr) == (2, "error: index is required; give it with --set index=…\n")


def test_another_encoder_than_the_indexs_is_status_3(tmp_path: Path) -> None:
    write_index(tmp_path / "i", ENCODER.encode(TEXTS), TEXTS, made_by=ENCODER.fingerprint, encoder="hash:64")
    done = run(f"index={tmp_path}/i", "pairs=p.jsonl", f"output={tmp_path}/mined.jsonl", "encoder=hash:32")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and "dim (the index: 64, the encoder: 32)" in done.stderr
