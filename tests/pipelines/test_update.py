"""Updating and compacting an index on a real, small Ray: what is found is what a fresh build would find."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.compact import CompactConfig, compact
from pipelines.index import IndexConfig, index
from pipelines.update import UpdateConfig, update
from pipelines.versions import verify_index
from rayvec import storage
from rayvec.encoding.direct import embed, publish_part, work_of
from rayvec.errors import ConcurrentWriterError, MismatchError, UserError, VerificationError
from rayvec.indexing import versions
from rayvec.indexing.searcher import Index
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.schema import DOCUMENT
from rayvec.serving.changes import Change, Written
from rayvec.serving.commits import Committer
from rayvec.serving.schemas import Document
from rayvec.serving.writer import settings_of
from tests.artifacts import EMBEDDED, texts_for, write_embeddings
from tests.updates import COUNT, QUERIES, VECTORS, Model, check, check_dense, dense_ids

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A model with a flat index of COUNT documents."""
    made = Model(tmp_path)
    made.build()
    return made


@pytest.mark.parametrize("seed", range(int(os.environ.get("RAYVEC_UPDATES", "2"))))
def test_after_any_updates_and_deletes_the_answers_are_those_of_a_fresh_build(tmp_path: Path, seed: int) -> None:
    model = Model(tmp_path, seed)
    model.build()
    for step in range(6):
        old = model.some(int(model.generator.integers(0, 40)))
        new = [f"new-{step}-{i}" for i in range(int(model.generator.integers(0, 40)))]
        gone = [id_ for id_ in model.some(int(model.generator.integers(1, 40))) if id_ not in old]
        model.upsert([str(id_) for id_ in model.generator.permutation(old + new)], gone)
        check(model)
        if step == 3:
            assert compact(CompactConfig(index=str(model.index)))["documents"] == len(model.live)
            check(model)
    before = dense_ids(Index.open(model.index, threads=1), 20)
    report = compact(CompactConfig(index=str(model.index)))
    assert (report["documents"], report["recall@10"]) == (len(model.live), 1.0)
    opened = Index.open(model.index, threads=1)
    assert (len(opened.segments), len(opened.dropped), opened.lexical_drift()) == (1, 0, pytest.approx(0, abs=1e-6))
    assert dense_ids(opened, 20)[0] == before[0]
    check(model)


def test_the_report_counts_what_happened(model: Model) -> None:
    report = model.upsert(["doc-1", "doc-2", "new-1"], ["doc-3", "nowhere"])
    told = {key: report[key] for key in ("added", "replaced", "deleted", "unknown_ids", "documents", "segments")}
    assert told == {"added": 1, "replaced": 2, "deleted": 1, "unknown_ids": 1, "documents": COUNT, "segments": 2}
    assert (report["version"], report["dropped_rows"], report["unchanged"]) == ("v2", 3, False)
    check(model)


def test_ids_to_delete_come_from_a_file(model: Model, tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text("doc-5\r\n\ndoc-6\nthere is no such\ndoc-5\n", encoding="utf-8")
    report = update(UpdateConfig(index=str(model.index), delete=str(tmp_path / "gone.txt")))
    assert (report["deleted"], report["unknown_ids"], report["segments"]) == (2, 1, 1)
    del model.live["doc-5"], model.live["doc-6"]
    check(model)


def test_numbers_in_a_list_of_ids_are_ids() -> None:
    assert UpdateConfig.parse({"delete": [12, "a"]}).delete == ("12", "a")
    with pytest.raises(UserError, match="delete"):
        UpdateConfig.parse({"delete": [1.5]})


def test_what_is_deleted_and_embedded_in_one_update_stays_in(model: Model) -> None:
    report = model.upsert(["doc-7"], ["doc-7"])
    assert (report["documents"], report["replaced"]) == (COUNT, 1)
    check(model)


def test_the_same_update_again_changes_nothing_and_says_so(model: Model) -> None:
    model.upsert(["doc-1", "new-1"], ["doc-9"])
    again = update(UpdateConfig(index=str(model.index), embeddings=str(model.folder / "batch-2"), delete=("doc-9",)))
    assert again["unchanged"] and again["why"] == "this very update is in the live version"
    assert versions.list_versions(model.index) == ["v1", "v2"]
    compact(CompactConfig(index=str(model.index)))
    assert update(UpdateConfig(index=str(model.index), embeddings=again["output"][:-5] + "batch-2", delete=("doc-9",)))["unchanged"]  # fmt: skip  # noqa: E501


def test_an_update_with_what_the_index_was_built_from_changes_nothing(model: Model) -> None:
    assert update(UpdateConfig(index=str(model.index), embeddings=str(model.folder / "batch-1")))["unchanged"]
    assert versions.list_versions(model.index) == ["v1"]


def test_deletes_of_nothing_make_no_version(model: Model) -> None:
    report = model.delete(["nobody"])
    assert report["unchanged"] and report["unknown_ids"] == 1
    assert versions.list_versions(model.index) == ["v1"]


def test_a_delete_of_everything_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="every document"):
        update(UpdateConfig(index=str(model.index), delete=tuple(model.live)))
    check(model)


def test_ids_that_stand_in_several_rows_are_all_replaced(tmp_path: Path) -> None:
    model = Model(tmp_path)
    ids = [f"doc-{i // 2}" for i in range(COUNT)]  # each of them twice
    folder = write_embeddings(tmp_path / "twice", VECTORS, texts_for(COUNT), ids=ids)
    index(IndexConfig(embeddings=str(folder), output=str(model.index), lexical_columns=("text",)))
    report = model.upsert(["doc-0"], ["doc-1"])
    assert (report["replaced"], report["deleted"], report["dropped_rows"]) == (1, 1, 4)
    assert report["documents"] == COUNT - 4 + 1


def test_of_an_id_that_comes_twice_in_an_update_the_last_row_counts(model: Model) -> None:
    report = model.upsert(["new-1", "new-2", "new-1"])
    assert (report["added"], report["documents"], report["dropped_rows"]) == (2, COUNT + 2, 1)
    check_dense(model)


def test_windows_of_an_old_text_do_not_stay_beside_those_of_the_new(tmp_path: Path) -> None:
    model = Model(tmp_path)
    parents = [f"doc-{i // 4}" for i in range(COUNT)]
    ids = [f"{parent}#{i % 4}" for i, parent in enumerate(parents)]
    old = write_embeddings(tmp_path / "old", VECTORS, texts_for(COUNT), ids=ids, parents=parents)
    index(IndexConfig(embeddings=str(old), output=str(model.index)))
    new = write_embeddings(tmp_path / "new", QUERIES[:2], ["a", "b"], ids=["doc-3#0", "doc-3#1"], parents=["doc-3"] * 2)
    report = update(UpdateConfig(index=str(model.index), embeddings=str(new), delete=("doc-5",)))
    assert (report["replaced"], report["deleted"], report["documents"]) == (1, 1, COUNT - 4 + 2 - 4)
    opened = Index.open(model.index, threads=1)
    found = [row["id"] for row in opened.documents(opened.dense(QUERIES[:1], opened.count).rows[0], ["id"])]
    assert sorted(id_ for id_ in found if id_.startswith(("doc-3#", "doc-5#"))) == ["doc-3#0", "doc-3#1"]


def test_what_a_service_wrote_is_compacted_with_the_rest(tmp_path: Path) -> None:
    """An index of windows: a document is several rows, which go and come together, and whose text is known again."""
    encoder = HashEncoder(dim=16)
    settings = {**EMBEDDED, "long": "windows", "window_tokens": 4, "overlap_tokens": 1}
    work = work_of(settings, "hash:16", encoder.fingerprint)
    ids = [f"doc-{i}" for i in range(60)]
    texts = [f"{text} and then some more of it" for text in texts_for(60)]
    table = pa.table([ids, [None] * 60, texts], schema=DOCUMENT)
    dataset = publish_part(tmp_path / "embeddings", embed(work, table, encoder, encoder)[0], work, settings)
    output = str(tmp_path / "index")
    index(IndexConfig(embeddings=dataset.uri, output=output, factory="IVF4,Flat", recall_target=0.9))
    writer = Committer(output, work, settings_of(output), encoder, encoder)

    def commit(*documents: Document, ids: tuple[str, ...] = ()) -> Written:
        [written] = writer.commit([Change(documents, ids)])
        assert isinstance(written, Written)
        return written

    long = "one two three four five six seven eight nine ten"
    assert commit(*(Document(id=f"new-{i}", text=f"{long} {i}") for i in range(3))).added == 3
    assert commit(Document(id="new-0", text=f"{long} 0"), Document(id="doc-5", text=texts[5])).unchanged == 2
    assert commit(Document(id="doc-5", text=long), ids=("doc-6", "new-2")).replaced == 1
    opened = Index.open(output)
    assert len(opened.segments) > 1 and len(opened.dropped)
    before = {row["id"] for row in opened.documents(opened.dense(QUERIES[:1], opened.count).rows[0], ["id"])}
    assert {id_.partition("#")[0] for id_ in before} == {*ids, "new-0", "new-1"} - {"doc-6"}

    assert compact(CompactConfig(index=output))["documents"] == len(before)
    opened = Index.open(output)
    assert {row["id"] for row in opened.documents(range(opened.count), ["id"])} == before
    assert commit(Document(id="doc-5", text=long)).unchanged == 1
    assert commit(Document(id="new-1", text="short")).replaced == 1
    versions.prune(output, 1)
    assert compact(CompactConfig(index=output))["segments_before"] == 2
    assert verify_index(output)["faults"] == 0


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW8", "SQ8", "RR16,IVF16,RaBitQ,RFlat"])
def test_every_kind_of_base_finds_what_is_live(tmp_path: Path, factory: str) -> None:
    model = Model(tmp_path)
    model.build(factory=factory, recall_target=0.9, shards=2)
    model.upsert([*model.some(30), "new-1", "new-2"], model.some(5))
    report = model.delete(model.some(50))
    assert report["recall@10"] >= 0.9
    opened = Index.open(model.index, threads=1)
    ids, scores = dense_ids(opened, len(model.live))
    assert all(sorted(row) == sorted(model.live) for row in ids)
    expected = np.stack([[QUERIES[q] @ model.live[id_][0] for id_ in row] for q, row in enumerate(ids)])
    np.testing.assert_allclose(scores, expected, atol=0.05 if "SQ8" in factory else 1e-5)


def test_the_search_is_made_wider_when_an_update_makes_it_miss(tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.build(factory="IVF32,Flat", recall_target=0.8, lexical=False)
    before = Index.open(model.index).manifest["search"]["nprobe"]
    # All that is near the centroids of a direction goes, so that what is left lies in lists further away.
    direction = VECTORS @ VECTORS[0]
    report = model.delete([f"doc-{row}" for row in np.argsort(-np.abs(direction))[:300]])
    assert report["recall@10"] >= 0.8 and report["search"]["nprobe"] >= before
    proof = Index.open(model.index).manifest["proof"]
    assert proof["queries"] > 20 and proof["recall"] == report["recall@10"]


def test_a_reduced_index_takes_new_vectors_through_the_same_projection(tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.build(dimensions=8, lexical=False)
    model.upsert(["new-1", "doc-2"])
    opened = Index.open(model.index, threads=1)
    projected = opened.prepared(np.stack([vector for vector, _ in model.live.values()]))
    expected = np.argsort(-(opened.prepared(QUERIES) @ projected.T), axis=1)[:, :10]
    assert dense_ids(opened, 10)[0] == [[list(model.live)[row] for row in rows] for rows in expected]


def test_unchanged_files_are_linked_and_outlive_their_first_version(model: Model) -> None:
    model.upsert(["new-1"], ["doc-0"])
    old, new = (model.index / "versions" / name for name in ("v1", "v2"))
    assert (new / "documents.parquet").samefile(old / "documents.parquet")
    assert not (new / "manifest.json").samefile(old / "manifest.json")
    assert (Index.open(model.index, "v1").count, Index.open(model.index).count) == (COUNT, COUNT)
    versions.prune(model.index, keep=1)
    assert versions.list_versions(model.index) == ["v2"]
    check(model)


def test_where_links_are_not_possible_files_are_copied(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    model.upsert(["new-1"], ["doc-0"])
    assert not (model.index / "versions/v2/documents.parquet").samefile(model.index / "versions/v1/documents.parquet")
    check(model)


def test_damage_to_a_file_that_versions_share_is_told_by_both(model: Model) -> None:
    path = model.index / "versions" / "v1" / "shard-00000.faiss"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    model.upsert(["new-1"])
    for version in ("v1", "v2"):
        with pytest.raises(VerificationError, match=r"shard-00000\.faiss"):
            Index.open(model.index, version)


def test_embeddings_of_another_encoder_are_refused_by_the_field(model: Model) -> None:
    with pytest.raises(MismatchError, match=r"weights \(the index: test, the embeddings: other\)"):
        model.upsert(["new-1"], weights="other")
    assert versions.list_versions(model.index) == ["v1"]


def test_embeddings_made_with_other_settings_are_refused_by_the_setting(tmp_path: Path) -> None:
    encoder = HashEncoder(dim=16)

    def embedded(name: str, **settings: Any) -> str:
        work = work_of({**EMBEDDED, **settings}, "hash:16", encoder.fingerprint)
        table = pa.table([[name], [None], [f"a text of {name}"]], schema=DOCUMENT)
        part = embed(work, table, encoder, encoder)[0]
        return publish_part(tmp_path / name, part, work, {**EMBEDDED, **settings}).uri

    output = str(tmp_path / "index")
    index(IndexConfig(embeddings=embedded("old", instruction="Find:"), output=output))
    told = r"differ in instruction \(the index: 'Find:', the embeddings: None\); embed the new documents with"
    with pytest.raises(MismatchError, match=told):
        update(UpdateConfig(index=output, embeddings=embedded("new")))
    assert versions.list_versions(output) == ["v1"]
    same = embedded("same", instruction="Find:", max_length=encoder.fingerprint.max_length, unit_rows=7)
    assert update(UpdateConfig(index=output, embeddings=same))["added"] == 1


def test_binary_embeddings_are_not_put_beside_floats(model: Model) -> None:
    with pytest.raises(MismatchError, match="differ in dtype"):
        model.upsert(["new-1"], dtype="binary")


@pytest.mark.parametrize("column", ["line", "title"])
def test_a_column_that_new_documents_lack_is_null_there(model: Model, column: str) -> None:
    assert model.upsert(["new-1", "doc-2"], drop=column)["added"] == 1
    documents = Index.open(model.index).documents([COUNT, COUNT + 1], ["id", column])
    assert documents == [{"id": "new-1", column: None}, {"id": "doc-2", column: None}]
    check(model)


def test_texts_that_new_documents_lack_are_asked_for(model: Model) -> None:
    with pytest.raises(UserError, match="a column 'text', and the new embeddings have none; embed with keep_text=true"):
        model.upsert(["new-1"], drop="text")


def test_a_column_that_the_index_lacks_is_refused_with_the_cure(model: Model) -> None:
    told = r"a column 'price', and the index's documents have none; embed without it .*source\.payload.*a new index"
    with pytest.raises(UserError, match=told):
        model.upsert(["new-1"], extra={"price": pa.array([1.5])})


@pytest.mark.parametrize(
    ("old", "new", "values"),
    [
        (pa.float64(), pa.array([3, None]), [3.0, None]),
        (pa.list_(pa.int32()), pa.nulls(2, pa.string()), [None, None]),
        (pa.timestamp("us"), pa.array([1000, None], pa.timestamp("ns")), [datetime(1970, 1, 1, 0, 0, 0, 1), None]),
    ],
    ids=["numbers", "nulls", "times"],
)
def test_values_become_those_of_the_indexs_type_and_stay_so(
    tmp_path: Path, old: pa.DataType, new: pa.Array, values: list[Any]
) -> None:
    model = Model(tmp_path)
    base = model.batch(["old-1", "old-2"], VECTORS[:2], ["one", "two"], extra={"price": pa.nulls(2, old)})
    index(IndexConfig(embeddings=str(base), output=str(model.index), lexical_columns=("text", "price")))
    model.upsert(["new-1", "new-2"], extra={"price": new})
    opened = Index.open(model.index)
    assert [row["price"] for row in opened.documents(range(4), ["price"])] == [None, None, *values]
    model.delete(["old-1", "old-2"])  # only embeddings of another type are left
    compact(CompactConfig(index=str(model.index)))
    opened = Index.open(model.index)
    assert opened.column_types()["price"] == old
    assert [row["price"] for row in opened.documents([0, 1], ["price"])] == values


def test_a_value_that_the_index_cannot_hold_is_refused_wherever_it_stands(model: Model) -> None:
    count = 30
    lines = pa.array([*map(float, range(count - 1)), 2.5])
    told = r"column 'line' is int32 in the index and double in the new embeddings, and 2\.5 cannot .*source\.payload"
    with pytest.raises(UserError, match=told):
        model.upsert([f"new-{i}" for i in range(count)], drop="line", extra={"line": lines})
    assert versions.list_versions(model.index) == ["v1"]


def test_a_service_writes_beside_values_that_were_of_another_type(tmp_path: Path) -> None:
    encoder = HashEncoder(dim=16)
    work = work_of(EMBEDDED, "hash:16", encoder.fingerprint)

    def embedded(name: str, price: pa.Array) -> str:
        table = pa.table([[name], [None], [f"a text of {name}"], price], names=["id", "title", "text", "price"])
        table = table.cast(pa.schema([*DOCUMENT, pa.field("price", price.type)]))
        return publish_part(tmp_path / name, embed(work, table, encoder, encoder)[0], work, EMBEDDED).uri

    output = str(tmp_path / "index")
    index(IndexConfig(embeddings=embedded("old", pa.array([1.5])), output=output))
    update(UpdateConfig(index=output, embeddings=embedded("new", pa.array([3]))))
    writer = Committer(output, work, settings_of(output), encoder, encoder)
    same = Document(id="new", text="a text of new", payload={"price": 3})
    [written] = writer.commit([Change((same, Document(id="more", text="more", payload={"price": 4})), ())])
    assert isinstance(written, Written) and (written.unchanged, written.added) == (1, 1)
    compact(CompactConfig(index=output))
    documents = Index.open(output).documents(range(3), ["id", "price"])
    assert {row["id"]: row["price"] for row in documents} == {"old": 1.5, "new": 3.0, "more": 4.0}


def test_a_damaged_part_is_refused_and_nothing_is_left(model: Model, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "bad", VECTORS[:20], texts_for(20), parts=1)
    part = next((folder / "data").iterdir())
    part.write_bytes(part.read_bytes()[:-300] + bytes(300))
    with pytest.raises(VerificationError, match=part.name):
        update(UpdateConfig(index=str(model.index), embeddings=str(folder)))
    assert storage.list_names(model.index / "versions") == ["v1"]
    check(model)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"index": ""}, "index is required"),
        ({"embeddings": ""}, "nothing to do"),
        ({"embeddings": "nowhere"}, "no finished embeddings"),
        ({"delete": "nowhere.txt"}, "no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_cure(model: Model, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        update(UpdateConfig(index=str(model.index), embeddings=str(model.folder / "batch-1")).replace(**changes))


def test_a_folder_that_is_no_index_is_not_made_one(tmp_path: Path) -> None:
    for run in (
        lambda: update(UpdateConfig(index=str(tmp_path / "typo"), delete=("a",))),
        lambda: compact(CompactConfig(index=str(tmp_path / "typo"))),
    ):
        with pytest.raises(UserError, match="holds no index"):
            run()
    assert not (tmp_path / "typo").exists()


def test_a_second_writer_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "WAIT_S", 0)
    with versions.writing(model.index), pytest.raises(ConcurrentWriterError):
        model.delete(["doc-1"])


def test_compacting_is_advised_when_a_tenth_is_new_or_gone(model: Model) -> None:
    assert model.delete(model.some(30))["advice"] is None
    report = model.delete(model.some(30))
    assert report["advice"].startswith("compact:") and "hash.compact" not in report["next"]
    assert f"jobs.index --recipe tiny.compact --set index={model.index}" in report["next"]


def test_there_is_nothing_to_compact_in_one_whole_segment(model: Model) -> None:
    assert compact(CompactConfig(index=str(model.index)))["unchanged"]
    assert versions.list_versions(model.index) == ["v1"]


def test_embeddings_that_are_gone_are_named_when_compacting(model: Model) -> None:
    model.upsert(["new-1"])
    shutil.rmtree(model.folder / "batch-2")
    with pytest.raises(UserError, match=r"batch-2 \(v1\), and they are gone"):
        compact(CompactConfig(index=str(model.index)))
    check(model)


def test_other_embeddings_in_their_place_are_refused(model: Model) -> None:
    model.upsert(["new-1"])
    write_embeddings(model.folder / "batch-2", VECTORS[:3], texts_for(3))
    with pytest.raises(MismatchError, match="manifest_sha256"):
        compact(CompactConfig(index=str(model.index)))


def test_embeddings_of_which_nothing_lives_are_not_asked_for(model: Model) -> None:
    model.upsert(["doc-1", "doc-2"])
    model.upsert(["doc-1", "doc-2"])
    shutil.rmtree(model.folder / "batch-2")
    compact(CompactConfig(index=str(model.index)))
    check(model)


def test_an_index_after_an_update_is_built_anew_when_asked_for(model: Model) -> None:
    model.delete(["doc-1"])
    report = index(
        IndexConfig(embeddings=str(model.folder / "batch-1"), output=str(model.index), lexical_columns=("text",))
    )
    assert (report["reused"], report["documents"]) == (False, COUNT)


def test_files_of_equal_names_in_another_folder_replace_nothing_unasked(model: Model) -> None:
    def made(id_: str, folder: str) -> UpdateConfig:
        """New embeddings of one document, whose id was made of a file's name in a folder."""
        embeddings = model.batch([id_], VECTORS[:1], [f"of {folder}, batch{model.batches}"], parts=1)
        manifest = storage.read_json(embeddings / "manifests/v1.json")
        manifest["settings"] = {"source": {"names_by_place": folder}}
        storage.write_json(embeddings / "manifests/v1.json", manifest)
        return UpdateConfig(index=str(model.index), embeddings=str(embeddings))

    assert update(made("part-0.parquet:7", "/day1"))["added"] == 1
    assert update(made("part-0.parquet:7", "/day1"))["replaced"] == 1
    assert update(made("part-1.parquet:7", "/day2"))["added"] == 1
    with pytest.raises(UserError, match=r"1 documents .*/day1.*/day3.*source\.make_ids=content"):
        update(made("part-0.parquet:7", "/day3"))
    assert update(made("part-0.parquet:7", "/day3").replace(replace_names=True))["replaced"] == 1
