"""Small files of text: what cannot be read is told in one line that names the file, whoever reads it."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayvec.errors import UserError
from rayvec.evaluation.beir import read_qrels
from rayvec.evaluation.local_sets import read_labelled
from rayvec.evaluation.sts import read_pairs
from rayvec.evaluation.tagged_files import read_tagged

READERS: list[Callable[[str], Any]] = [read_qrels, read_pairs, read_labelled, read_tagged]
WHOLE = gzip.compress(b"query\tdocument\t1\n" * 500)
DAMAGED = {
    "no_gzip.tsv.gz": b"query\tdocument\t1\n",
    "cut_off.tsv.gz": WHOLE[:-9],
    "changed.tsv.gz": WHOLE[:12] + b"\xff" * 4 + WHOLE[16:],
    "latin-1.tsv": "für\tdocument\t1\n".encode("latin-1"),
}


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_is_named(read: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.tsv does not exist; give a "):
        read(str(tmp_path / "nowhere.tsv"))


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("read", READERS)
def test_a_damaged_file_is_named(read: Callable[[str], Any], name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=f"{name} cannot be read as text in UTF-8 "):
        read(str(tmp_path / name))


def test_a_field_may_be_a_long_document(tmp_path: Path) -> None:
    long = "word " * 100_000
    (tmp_path / "pairs.csv").write_text(f"{long},b,1\na,b,2\nc,d,3\n")
    assert read_pairs(str(tmp_path / "pairs.csv")).first == [long, "a", "c"]
    (tmp_path / "classes.csv").write_text(f"text,label\n{long},x\na,y\n")
    assert read_labelled(str(tmp_path / "classes.csv")).texts == [long, "a"]


def test_what_csv_cannot_hold_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv.field_size_limit(1 << 17)
    monkeypatch.setattr("csv.field_size_limit", lambda *_: 1 << 17)  # left as it is
    (tmp_path / "p.csv").write_text("a,b,1\n" + "x" * (1 << 18) + ",b,1\n")
    with pytest.raises(UserError, match=r"p\.csv, line 2: field larger than field limit"):
        read_pairs(str(tmp_path / "p.csv"))
