"""Reading pairs: what a line may be, and what is said of one that is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec.data.pair_files import PairLine, read_pairs
from rayvec.data.pairs import is_held_out
from rayvec.errors import UserError


def test_files_of_a_folder_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"query": "q2", "positive_id": "d2"}\n')
    (tmp_path / "a.jsonl").write_text('\n{"query": "q1", "positive": "p1", "negative": "n", "positive_id": "d1"}\n')
    expected = [
        PairLine(f"{tmp_path}/a.jsonl:2", "q1", "p1", "d1"),
        PairLine(f"{tmp_path}/b.jsonl:1", "q2", None, "d2"),
    ]
    assert list(read_pairs(str(tmp_path), "")) == expected
    assert list(read_pairs(str(tmp_path / "*.jsonl"), "")) == expected


def test_a_number_is_an_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "q", "positive_id": 7}\n')
    assert next(read_pairs(str(tmp_path / "a.jsonl"), "")).positive_id == "7"


def test_docstrings_ask_and_held_out_documents_do_not(tmp_path: Path) -> None:
    rest = "The second part is put after the first, with one separator between both of them."
    ids = [f"d{i}" for i in range(60)]
    table = pa.table({"id": ids, "text": [f"Join path number {i}.\n\n{rest}" for i in range(60)]})
    pq.write_table(table, tmp_path / "docs.parquet")
    pairs = list(read_pairs(str(tmp_path / "docs.parquet"), ""))
    assert [pair.positive_id for pair in pairs] == [id_ for id_ in ids if not is_held_out(id_)]
    assert pairs[0][1:] == ("Join path number 0.", rest, "d0")
    assert len(pairs) < 60


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"pairs\.jsonl:1 is no pair \(JSONDecodeError"),
        ("[1]", "is no pair"),
        ('{"query": 3, "positive": "p"}', "is no pair"),
        ('{"query": "q", "positive": ["p"]}', "is no pair"),
        ('{"query": "q", "positive": "\\ud800"}', "is no pair"),
        ('{"query": " ", "positive": "p"}', "lacks query"),
        ('{"query": "q", "positive": ""}', "lacks query, or both"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=says):
        list(read_pairs(str(tmp_path / "pairs.jsonl"), ""))


def test_no_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a jsonl file"):
        list(read_pairs(str(tmp_path / "none.jsonl"), ""))
