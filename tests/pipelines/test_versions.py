"""Looking after an index: what its versions are, whether the live one is whole, and how two of them differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.index import IndexConfig, index
from pipelines.versions import compare, list_index, prune, render_list, roll_back, verify_index
from rayvec.errors import UserError, VerificationError
from rayvec.indexing import versions
from rayvec.indexing.searcher import Index
from tests.artifacts import random_vectors, texts_for, write_embeddings, write_index
from tests.updates import COUNT, DIM, VECTORS, Model

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An index of two versions: as built, and after an update."""
    model = Model(tmp_path_factory.mktemp("made"))
    model.build()
    model.upsert([f"doc-{i}" for i in range(40)] + ["new-1", "new-2"], ["doc-50"])
    return model


@pytest.fixture
def copy(made: Model, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.index, tmp_path / "copy"))


def test_a_list_tells_each_version_and_what_it_added_to_the_disk(made: Model) -> None:
    first, second = list_index(str(made.index))
    told = [[row[name] for name in ("version", "live", "documents", "deleted", "segments")] for row in (first, second)]
    assert told == [["v1", False, COUNT, 0, 1], ["v2", True, COUNT + 1, 41, 2]]
    assert first["new_bytes"] == first["bytes"] and second["new_bytes"] < second["bytes"] / 2
    lines = render_list([first, second]).splitlines()
    assert lines[0].split()[:3] == ["version", "live", "made"] and lines[2].split()[:2] == ["v2", "*"]
    assert "Flat" in lines[1] and lines[1].endswith("1.000")


def test_a_damaged_version_is_listed_as_such(copy: Path) -> None:
    (copy / "versions" / "v1" / "manifest.json").write_text("{}")
    assert [row.get("damage") is None for row in list_index(str(copy))] == [False, True]
    assert "damaged" in render_list(list_index(str(copy)))


def test_going_back_and_pruning(copy: Path) -> None:
    assert roll_back(str(copy), None) == {"live": "v1", "before": "v2", "output": str(copy)}
    assert prune(str(copy), keep=1)["removed"] == "none"  # v2 is the newest, v1 the live one
    assert roll_back(str(copy), "v2")["live"] == "v2"
    assert prune(str(copy), keep=1)["removed"] == ["v1"]
    assert Index.open(copy).count == COUNT + 1


def test_a_whole_version_is_verified(made: Model) -> None:
    report = verify_index(str(made.index))
    assert (report["version"], report["documents"], report["deleted"], report["faults"]) == ("v2", COUNT + 1, 41, 0)


@pytest.mark.parametrize("name", ["dropped.npy", "delta-00001/documents.parquet", "delta-00001/lexical/lengths.npy"])
def test_damage_to_any_file_is_named(copy: Path, name: str) -> None:
    path = copy / "versions" / "v2" / name
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match=Path(name).name.replace(".", r"\.")):
        verify_index(str(copy))


def test_two_documents_of_one_id_are_a_fault(tmp_path: Path) -> None:
    write_index(tmp_path, VECTORS[:6], texts_for(6), ids=["a", "b", "c", "a", "b", "a"])
    with pytest.raises(VerificationError, match="3 documents whose id another live one has"):
        verify_index(str(tmp_path))


def test_a_version_is_like_itself(made: Model) -> None:
    report = compare(str(made.index), "v2", "v2")
    assert (report["overlap@10"], report["same_first"], report["score_drift_p95"]) == (1.0, 1.0, 0.0)
    assert (report["only_in_a"], report["only_in_b"], report["in_both"]) == (0, 0, COUNT + 1)


def test_an_update_is_told_from_the_version_before(made: Model) -> None:
    report = compare(str(made.index), "v1", "v2")
    assert (report["only_in_a"], report["only_in_b"], report["in_both"]) == (1, 2, COUNT - 1)
    assert 0.6 < report["overlap@10"] < 1
    assert report["encoder"] == "the same" and report["score_drift_mean"] >= 0


def test_the_overlap_is_that_of_neighbours_found_by_hand(made: Model, tmp_path: Path) -> None:
    """Every document is asked for when there are few, so that the mean is exact."""
    count = 30
    vectors = {name: random_vectors(count, DIM, seed) for name, seed in (("old", 1), ("new", 2))}
    for name, values in vectors.items():
        folder = write_embeddings(tmp_path / f"{name}-in", values, texts_for(count), weights=name)
        index(IndexConfig(embeddings=str(folder), output=str(tmp_path / name), lexical=False))
    report = compare(str(tmp_path / "old"), "v1", str(tmp_path / "new"))
    scores = [values @ values.T - 9 * np.eye(count) for values in vectors.values()]
    best = [np.argsort(-each, axis=1)[:, :10] for each in scores]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(*best, strict=True)]
    assert report["queries"] == count
    assert report["overlap@10"] == pytest.approx(np.mean(shares))
    assert report["encoder"].startswith("another") and report["b"]["version"].endswith("new@v1")


def test_indices_without_a_common_document_are_refused(made: Model, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "in", VECTORS[:5], texts_for(5), ids=list("abcde"))
    index(IndexConfig(embeddings=str(folder), output=str(tmp_path / "out"), lexical=False))
    with pytest.raises(UserError, match="in common"):
        compare(str(made.index), "v2", str(tmp_path / "out"))


def test_a_compaction_answers_as_the_version_before(made: Model, copy: Path) -> None:
    from pipelines.compact import CompactConfig, compact

    compact(CompactConfig(index=str(copy)))
    report = compare(str(copy), "v2", "v3")
    assert report["overlap@10"] == 1.0 and report["score_drift_p95"] < 1e-5
    assert (report["only_in_a"], report["only_in_b"]) == (0, 0)


def test_what_a_failed_swap_left_is_removed_and_what_was_live_is_not(made: Model, copy: Path) -> None:
    shutil.copytree(copy / "versions" / "v2", copy / "versions" / "v3")  # finished, and never live
    versions.rollback(copy)
    assert versions.list_versions(copy) == ["v1", "v2"]
    assert (versions.current(copy), Index.open(copy).count) == ("v1", COUNT)
