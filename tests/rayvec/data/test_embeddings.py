"""The reader of embeddings: it follows the manifest, and believes nothing that it has not checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.data.embeddings import EmbeddingsDataset, read_part, vectors
from rayvec.errors import UserError, VerificationError
from rayvec.modeling.hash_encoder import HashEncoder
from tests.artifacts import random_vectors, texts_for, write_index
from tests.corpora import documents
from tests.rayvec.encoding.test_publish import embed_all

PAIRS = documents(25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    embed_all(tmp_path, PAIRS)
    return tmp_path


def change_manifest(folder: Path, **changes: Any) -> None:
    file = folder / "manifests" / "v1.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_it_tells_what_it_holds(folder: Path) -> None:
    there = EmbeddingsDataset.open(str(folder))
    assert (there.count, there.dim, there.version, there.payload) == (25, 16, 1, [])
    assert there.fingerprint == HashEncoder(dim=16).fingerprint


def test_its_tables_come_in_the_order_of_the_input(folder: Path) -> None:
    tables = list(EmbeddingsDataset.open(str(folder)).iter_tables(["id", "embedding"]))
    assert [id_ for table in tables for id_ in table["id"].to_pylist()] == [id_ for id_, _ in PAIRS]
    found = np.concatenate([vectors(table) for table in tables])
    np.testing.assert_array_equal(found, HashEncoder(dim=16).encode([text for _, text in PAIRS]))


def test_columns_come_as_they_were_asked_for(folder: Path) -> None:
    [uri, *_] = EmbeddingsDataset.open(str(folder)).part_uris
    assert read_part(uri, ["n_tokens", "id"]).column_names == ["n_tokens", "id"]
    with pytest.raises(VerificationError, match="no_such"):
        read_part(uri, ["id", "no_such"])


def test_nothing_is_there_before_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished embeddings"):
        EmbeddingsDataset.open(str(tmp_path))


def test_a_part_that_is_not_published_is_not_seen(folder: Path) -> None:
    [part, *_] = (folder / "data").iterdir()
    (folder / "data" / "00009-stray-00000000.parquet").write_bytes(part.read_bytes())
    there = EmbeddingsDataset.open(str(folder))
    assert sum(table.num_rows for table in there.iter_tables()) == 25


def test_a_version_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no version v7"):
        EmbeddingsDataset.open(str(folder), version=7)


def test_an_index_is_not_taken_for_embeddings(tmp_path: Path) -> None:
    write_index(tmp_path, random_vectors(5, 8), texts_for(5))
    with pytest.raises(UserError, match="holds an index, not embeddings"):
        EmbeddingsDataset.open(str(tmp_path))


def test_a_damaged_current_is_refused(folder: Path) -> None:
    (folder / "CURRENT").write_text("latest")
    with pytest.raises(VerificationError, match="CURRENT is damaged"):
        EmbeddingsDataset.open(str(folder))


def test_what_is_whole_verifies(folder: Path) -> None:
    assert EmbeddingsDataset.open(str(folder)).verify()["faults"] == 0


@pytest.mark.parametrize("place", [4, 500, -60])
def test_a_flipped_bit_anywhere_in_a_part_is_found(folder: Path, place: int) -> None:
    part = sorted((folder / "data").iterdir())[1]
    data = bytearray(part.read_bytes())
    data[place] ^= 1
    part.write_bytes(data)
    with pytest.raises(VerificationError, match="does not match its checksum"):
        EmbeddingsDataset.open(str(folder)).verify(full=False)


def test_a_missing_part_is_found(folder: Path) -> None:
    sorted((folder / "data").iterdir())[0].unlink()
    with pytest.raises(VerificationError, match="is missing"):
        EmbeddingsDataset.open(str(folder)).verify()


def test_a_manifest_whose_count_is_wrong_is_found(folder: Path) -> None:
    change_manifest(folder, count=24)
    with pytest.raises(VerificationError, match="count 24 is not the sum"):
        EmbeddingsDataset.open(str(folder)).verify()


def test_an_id_in_two_parts_is_found(folder: Path) -> None:
    parts = EmbeddingsDataset.open(str(folder)).parts
    names = ("rows", "documents", "quarantined", "duplicates", "truncated", "tokens")
    sums = {name: 2 * parts[0][name] for name in names}
    change_manifest(folder, parts=[parts[0], parts[0]], count=20, totals=sums)
    with pytest.raises(VerificationError, match="10 ids stand in more than one row"):
        EmbeddingsDataset.open(str(folder)).verify()


def test_all_faults_are_counted(folder: Path) -> None:
    for part in (folder / "data").iterdir():
        part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"\(and 2 more faults\)"):
        EmbeddingsDataset.open(str(folder)).verify()
