"""Publishing: the same manifest whatever was interrupted, and one row an id across all units."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.encoding.publish import manifest, publish, settle_duplicates
from rayvec.encoding.shards import Plan
from rayvec.encoding.sink import Record
from rayvec.encoding.work import Work, complete, prepare
from rayvec.errors import ConcurrentWriterError
from tests.corpora import documents, in_a_process, marked, work_on

#: d1 stands again in the second and the third unit of ten, d2 in the third.
REPEATED = [*documents(15), ("d1", "another one"), *documents(30)[16:25], ("d1", "a third"), ("d2", "another two")]


def embed_all(output: Path, pairs: list[tuple[str, str]] = REPEATED) -> tuple[Work, list[Record], Plan]:
    work = work_on(output, pairs)
    units = work.source.units(10)  # type: ignore[attr-defined]
    records = [complete(work, unit, prepare(work, unit, marked("")), marked("")) for unit in units]
    plan = Plan((), tuple(units), work.fingerprint, {"dtype": work.dtype})
    settled = settle_duplicates(work.sink, units, records)
    publish(work.sink, manifest(plan, settled, work.sink, "marked"))
    return work, settled, plan


def state(output: Path) -> dict[str, bytes]:
    """Every file that a reader can come to, by its path."""
    names = ["data", "ids", "units", "quarantine", "manifests", "CURRENT"]
    files = [file for name in names for file in [output / name, *(output / name).glob("*")] if file.is_file()]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


def test_of_ids_repeated_across_units_the_first_is_kept(tmp_path: Path) -> None:
    work, records, _ = embed_all(tmp_path)
    rows = [row for record in records for row in work.sink.table(record).to_pylist()]
    kept = [row["text"] for row in rows if row["id"] in ("d1", "d2")]
    assert kept == [text for _, text in REPEATED[1:3]]
    assert [(record.rows, record.duplicates) for record in records] == [(10, 0), (9, 1), (5, 2)]


def test_the_line_of_a_repeated_id_names_the_record_that_was_kept(tmp_path: Path) -> None:
    work, records, _ = embed_all(tmp_path)
    [line] = work.sink.lines(records[1].unit)
    kept = {"unit": records[0].unit, "source": "memory", "position": 1}
    assert (line["id"], line["position"], line["kept"]) == ("d1", 15, kept)
    assert line["text_sha256"] == storage.sha256_bytes(b"another one")


def test_what_was_published_verifies(tmp_path: Path) -> None:
    embed_all(tmp_path)
    assert EmbeddingsDataset.open(str(tmp_path)).verify()["rows"] == 24


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    embed_all(tmp_path)
    before = state(tmp_path)
    embed_all(tmp_path)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    "fault",
    ["after_part:2", "before_record:2", "after_record:3", "before_replace:1", "before_replace:2", "before_manifest",
     "after_manifest"],
)  # fmt: skip
def test_a_run_killed_at_any_point_and_run_again_ends_the_same(tmp_path: Path, fault: str) -> None:
    embed_all(tmp_path / "whole")
    code = f"from tests.rayvec.encoding.test_publish import *; embed_all(Path({str(tmp_path / 'killed')!r}))"
    assert in_a_process(code, RAYVEC_FAULT=fault) == 137
    embed_all(tmp_path / "killed")
    assert state(tmp_path / "killed") == state(tmp_path / "whole")


def test_another_content_is_another_version(tmp_path: Path) -> None:
    work, records, plan = embed_all(tmp_path)
    content = {**manifest(plan, records, work.sink, "marked"), "count": 0}
    assert publish(work.sink, content)[0] == 2
    assert EmbeddingsDataset.open(str(tmp_path)).version == 2
    assert EmbeddingsDataset.open(str(tmp_path), version=1).count == 24


def test_a_version_that_another_run_puts_first_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, records, plan = embed_all(tmp_path)
    content = {**manifest(plan, records, work.sink, "marked"), "count": 0}
    put = storage.put_if_absent

    def late(uri: str, data: bytes) -> bool:
        put(uri, b"{}")  # the other run, between our look and our write
        return put(uri, data)

    monkeypatch.setattr(storage, "put_if_absent", late)
    with pytest.raises(ConcurrentWriterError, match="published v2"):
        publish(work.sink, content)


def test_a_full_disk_is_told_and_what_was_begun_is_completed_later(tmp_path: Path) -> None:
    """No file of this process may be larger than markers and lines are, which is what a full disk does to a part."""
    embed_all(tmp_path / "whole")
    output, told = tmp_path / "full", tmp_path / "told"
    code = f"""
import resource
from tests.rayvec.encoding.test_publish import *
from rayvec.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    embed_all(Path({str(output)!r}))
except StorageError as error:
    Path({str(told)!r}).write_text(str(error))
    raise SystemExit(error.exit_status)
"""
    assert in_a_process(code) == 5
    assert told.read_text().startswith(f"no space left writing {output}/data/00000-")
    assert not list(output.glob("units/*")) and not list(output.rglob("*.tmp"))
    embed_all(output)
    assert state(output) == state(tmp_path / "whole")
