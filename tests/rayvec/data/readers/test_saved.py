"""Datasets saved by Hugging Face's own library: every row is there once, whatever the units and the storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayvec import storage
from rayvec.data.source_config import SourceConfig
from rayvec.data.sources import Source, open_source
from rayvec.data.units import Rejected
from rayvec.errors import UserError

datasets = pytest.importorskip("datasets")

ROWS = {
    "id": [f"d{i}" for i in range(2500)],
    "text": [f"text {i}" for i in range(2500)],
    "year": list(range(2500)),
    "label": [i % 2 for i in range(2500)],
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, of record batches of 1000 and 250 rows each; and a class label, which datasets keeps as a number."""
    path = tmp_path_factory.mktemp("saved") / "one"
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("large_string"),
            "year": datasets.Value("int64"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    datasets.Dataset.from_dict(ROWS, features=features).save_to_disk(path, num_shards=2)
    return path


def everything(source: Source, unit_rows: int) -> tuple[list[dict[str, Any]], list[Rejected]]:
    parts = [source.read(unit) for unit in source.units(unit_rows)]
    return [row for part in parts for row in part.table.to_pylist()], [one for part in parts for one in part.rejected]


def test_a_unit_may_be_a_part_of_a_batch(folder: Path) -> None:
    source = open_source(SourceConfig(path=str(folder)))
    rows = source.read(source.units(1)[1001]).table.to_pylist()
    assert [row["id"] for row in rows] == ["d1001"]


@pytest.mark.parametrize("unit_rows", [300, 1000, 1250, 10_000])
def test_every_row_is_read_once_in_order(folder: Path, unit_rows: int) -> None:
    rows, refused = everything(open_source(SourceConfig(path=str(folder), payload=("year", "label"))), unit_rows)
    found = {name: [row[name] for row in rows] for name in ROWS}
    assert found == ROWS and refused == []


def test_units_are_whole_batches_where_these_are_small(folder: Path) -> None:
    units = open_source(SourceConfig(path=str(folder))).units(1000)
    assert [(unit.start, unit.stop, Path(unit.uri).name) for unit in units] == [
        (0, 1000, "data-00000-of-00002.arrow"),
        (1000, 1250, "data-00000-of-00002.arrow"),
        (0, 1000, "data-00001-of-00002.arrow"),
        (1000, 1250, "data-00001-of-00002.arrow"),
    ]
    assert units == open_source(SourceConfig(kind="hf", path=f"{folder}/")).units(1000)


def test_a_choice_of_rows_is_read_in_the_order_chosen(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).select([5, 3, 1]).save_to_disk(tmp_path / "chosen")
    rows, _ = everything(open_source(SourceConfig(path=str(tmp_path / "chosen"))), 100)
    assert [row["id"] for row in rows] == ["d5", "d3", "d1"]


def test_rows_that_cannot_be_documents_are_refused_with_their_place(tmp_path: Path) -> None:
    texts = ["good", None, "", " \u200b", "good too", "x" * 200]
    datasets.Dataset.from_dict({"id": ["a", "b", "c", "d", None, "f"], "text": texts}).save_to_disk(tmp_path / "bad")
    rows, refused = everything(open_source(SourceConfig(path=str(tmp_path / "bad"), max_record_bytes=100)), 100)
    assert [(row["id"], row["position"]) for row in rows] == [("a", 0)]
    assert [(one.position, one.reason) for one in refused] == [
        (1, "missing_text"),
        (2, "empty_text"),
        (3, "empty_text"),
        (4, "bad_id"),
        (5, "record_too_large"),
    ]


def test_text_of_another_type_is_refused_before_the_work(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [True, False]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match="column 'text' is bool, not text"):
        open_source(SourceConfig(path=str(tmp_path / "numbers")))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved") / "dict"
    both = {"train": ["a", "b"], "test": ["c"]}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in both.items()}).save_to_disk(path)
    return str(path)


def test_a_split_is_chosen_by_name_and_is_in_the_ids(splits: str) -> None:
    rows, _ = everything(open_source(SourceConfig(path=splits, split="train")), 100)
    assert [(row["id"], row["text"]) for row in rows] == [
        ("train/data-00000-of-00001.arrow:0", "a"),
        ("train/data-00000-of-00001.arrow:1", "b"),
    ]


@pytest.mark.parametrize("split", [None, "dev"])
def test_without_its_name_the_splits_are_listed(splits: str, split: str | None) -> None:
    with pytest.raises(UserError, match=rf"source.split is {split!r}, .* has the splits train, test"):
        open_source(SourceConfig(path=splits, split=split))


def test_mistakes_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no splits"):
        open_source(SourceConfig(path=str(folder), split="train"))
    with pytest.raises(UserError, match="no folder that save_to_disk wrote"):
        open_source(SourceConfig(kind="hf", path=str(tmp_path)))


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> str:
    """The dataset, its second file cut short within its last batch."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: -1000 if "00001-of" in file.name else None])
    return str(tmp_path)


def test_a_damaged_file_stops_the_run_at_its_start(damaged: str) -> None:
    with pytest.raises(UserError, match=r"data-00001-of-00002.arrow: not a readable Arrow stream"):
        open_source(SourceConfig(path=damaged)).units(100)


def test_a_damaged_file_can_be_quarantined(damaged: str) -> None:
    rows, refused = everything(open_source(SourceConfig(path=damaged, on_bad_input="quarantine")), 300)
    assert [row["id"] for row in rows] == ROWS["id"][:1250]
    assert [(one.position, one.reason) for one in refused] == [(0, "damaged")]


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if "00001-of" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"data-00001-of-00002.arrow is missing, and state.json names it"):
        open_source(SourceConfig(path=str(tmp_path)))


def test_a_dataset_in_a_bucket(folder: Path) -> None:
    from tests.buckets import s3_server

    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as bucket:
        for file in folder.iterdir():
            storage.write_bytes(f"{bucket}/one/{file.name}", file.read_bytes())
        rows, refused = everything(open_source(SourceConfig(path=f"{bucket}/one")), 1000)
    assert [row["text"] for row in rows] == ROWS["text"] and refused == []


def test_dictionaries_are_read_as_their_values(tmp_path: Path) -> None:
    """Not what datasets writes of itself, but what it keeps of a table that was given so."""
    column = pa.array(["x", "y", "x"]).dictionary_encode()
    with (
        pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema([("text", column.type)])) as writer,
    ):
        writer.write_table(pa.table({"text": column}))
    storage.write_json(tmp_path / "state.json", {"_data_files": [{"filename": "d.arrow"}]})
    rows, _ = everything(open_source(SourceConfig(path=str(tmp_path))), 10)
    assert [row["text"] for row in rows] == ["x", "y", "x"]
