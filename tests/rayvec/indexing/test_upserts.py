"""Looking ids up in an index's documents, and reading them from where a user gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.data.ids import hash_ids
from rayvec.errors import UserError
from rayvec.indexing import upserts, versions
from rayvec.indexing.upserts import hashes_of, ids_of, match, read_ids, rows_with
from rayvec.indexing.vectors import parts_of
from tests.artifacts import random_vectors, texts_for, write_embeddings, write_index

COUNT = 300
VECTORS = random_vectors(COUNT, 8)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index in which doc-7 stands three times."""
    output = tmp_path_factory.mktemp("index")
    ids = [f"doc-{i if i not in (100, 299) else 7}" for i in range(COUNT)]
    write_index(output, VECTORS, texts_for(COUNT), ids=ids)
    return versions.version_folder(output)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_every_row_of_an_id_is_found_however_it_is_read(
    version: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upserts, "ROWS_AT_ONCE", at_once)
    manifest = versions.read_manifest(version)
    wanted = pa.array(["doc-7", "nowhere", "doc-298", "doc-0"])
    found = match(version, manifest, wanted)
    assert found.rows.tolist() == [0, 7, 100, 298, 299]
    assert found.found.tolist() == [True, False, True, True]
    assert rows_with(version, manifest, wanted).tolist() == [299, -1, 298, 0]


def test_ids_of_parts_name_each_document_once_and_the_last_row_counts(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "c", "b", "a"]
    dataset = EmbeddingsDataset.open(str(write_embeddings(tmp_path, VECTORS[:6], texts_for(6), ids=ids)))
    found, repeats = ids_of(parts_of(dataset.part_uris, dataset.parts), ["id", "title"])
    assert sorted(found.to_pylist()) == ["a", "b", "c"]
    assert repeats.tolist() == [0, 1, 2]


def test_ids_are_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes("eins\r\n zwei \n\nüber\neins".encode())
    assert read_ids(str(tmp_path / "ids")).to_pylist() == ["eins", " zwei ", "über"]
    (tmp_path / "marked").write_text("3\r\n4\r\n", encoding="utf-8-sig", newline="")
    assert read_ids(str(tmp_path / "marked")).to_pylist() == ["3", "4"]
    assert read_ids(("a", "b", "a")).to_pylist() == ["a", "b"]
    assert len(read_ids("")) == len(read_ids(())) == 0


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_ids(str(tmp_path / "ids"))


def test_hashes_taken_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pa.array([f"id-{i}" for i in range(100)])
    monkeypatch.setattr(upserts, "HASHED_AT_ONCE", 7)
    assert np.array_equal(hashes_of(ids), hash_ids(ids))
