"""Plain text: a document a file, or a line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from rayvec.data.sources import Source, SourceConfig, UnitData, open_source


def notes(folder: Path, **options: Any) -> Source:
    (folder / "deep").mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbffirst\n\nsecond \xc3\xa9\r\n")
    (folder / "deep/b.md").write_bytes(b"# Title")
    (folder / "deep/c.txt.gz").write_bytes(gzip.compress(b"zipped"))
    return open_source(SourceConfig(path=str(folder), **options))


def read(source: Source, unit_rows: int = 100) -> UnitData:
    parts = [source.read(unit) for unit in source.units(unit_rows)]
    rows = [row for part in parts for row in part.table.to_pylist()]
    return UnitData(
        parts[0].table.from_pylist(rows, schema=parts[0].table.schema), [r for p in parts for r in p.rejected]
    )


def test_each_file_is_a_document_named_by_its_path(tmp_path: Path) -> None:
    rows = read(notes(tmp_path)).table.to_pylist()
    assert [(row["id"], row["title"], row["text"]) for row in rows] == [
        ("a.txt", "a", "first\n\nsecond é\r\n"),
        ("deep/b.md", "b", "# Title"),
        ("deep/c.txt.gz", "c", "zipped"),
    ]


def test_small_files_share_a_unit(tmp_path: Path) -> None:
    source = notes(tmp_path)
    assert [len(unit.files) for unit in source.units(2)] == [2, 1]
    assert read(source, 2).table["position"].to_pylist() == [0, 1, 2]


def test_each_line_can_be_a_document(tmp_path: Path) -> None:
    rows = read(notes(tmp_path, lines=True)).table.to_pylist()
    assert [(row["id"], row["text"]) for row in rows] == [
        ("a.txt:1", "first"),
        ("a.txt:3", "second é"),
        ("deep/b.md:1", "# Title"),
        ("deep/c.txt.gz:1", "zipped"),
    ]


def test_bad_files_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    for name, data in {"a.txt": b"a \xff", "b.txt": b" \n", "c.txt": b"w" * 300, "d.txt": b"fine"}.items():
        (tmp_path / name).write_bytes(data)
    data = read(open_source(SourceConfig(path=str(tmp_path), max_record_bytes=200)))
    assert data.table["id"].to_pylist() == ["d.txt"]
    assert [(r.id, r.reason) for r in data.rejected] == [
        ("a.txt", "invalid_utf8"),
        ("b.txt", "empty_text"),
        ("c.txt", "record_too_large"),
    ]
