"""The export job: what others read is compared with ours, and a difference is an exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from jobs._cli import main
from jobs.export import command
from rayvec.modeling.encoder import TextEncoder
from rayvec.modeling.prompts import Prompts
from tests.models import SENTENCES, tiny_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


def encoder(base: Path, path: Path, **prompts: object) -> TextEncoder:
    made = TextEncoder.from_decoder(base, max_length=64, prompts=Prompts.parse(prompts))
    made.save(path)
    return made


def run(monkeypatch: pytest.MonkeyPatch, *assignments: str) -> int:
    flags = [word for assignment in assignments for word in ("--set", assignment)]
    monkeypatch.setattr(sys, "argv", ["export", *flags])
    try:
        main(command)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_sentence_transformers_reads_the_same_vectors(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    ours = encoder(llama, tmp_path / "e", instructions={"query": "find it"})
    asked = [f"encoder={tmp_path}/e", f"output={tmp_path}/out"]
    assert run(monkeypatch, *asked) == 0
    assert "least cosine" in (told := capsys.readouterr().out) and "sentence-transformers 1" in told
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    theirs = model.encode(SENTENCES, prompt_name="query")
    assert np.abs(theirs - ours.encode(SENTENCES, "find it")).max() <= 1e-5
    assert run(monkeypatch, *asked) == 0  # an export is replaced
    assert TextEncoder.load(tmp_path / "out").fingerprint == ours.fingerprint


def test_other_vectors_are_status_1(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The instruction and the text share a token, which sentence-transformers counts as the instruction's.
    encoder(llama, tmp_path / "e", instructions={"query": "Return th"}, instruction_format="{instruction}")
    texts = "texts=[e number of elements]"
    assert run(monkeypatch, f"encoder={tmp_path}/e", f"output={tmp_path}/out", texts) == 1
    told = capsys.readouterr().err.splitlines()[-1]  # after the progress that loading shows
    assert told.startswith("error: ") and "sentence-transformers reads other vectors" in told and "'query'" in told


def test_what_it_cannot_read_is_told_with_the_cure(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder(llama, tmp_path / "e", template="inst")
    assert run(monkeypatch, f"encoder={tmp_path}/e", f"output={tmp_path}/out") == 0
    assert "train with prompts.template=none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["output=x"], "encoder is required"),
        (["encoder=hash", "output=x"], "no weights to export"),
        (["encoder=tiny", "output=."], "holds something else"),
        (["encoder=tiny", "output=s3://b/x"], "give a local or mounted folder"),
    ],
)
def test_mistakes_are_one_line(
    wrong: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *wrong) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()
