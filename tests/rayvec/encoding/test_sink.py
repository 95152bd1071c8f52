"""The sink: parts that are the same each time, commits that happen once, damage that is seen."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayvec import schema
from rayvec.data.embeddings import read_part
from rayvec.data.vector_types import to_columns
from rayvec.encoding.sink import Record, Sink, part_bytes
from rayvec.errors import StorageError, VerificationError


def part(rows: int, seed: int = 0, dtype: schema.VectorType = "float16") -> pa.Table:
    field = schema.embedding_field(8, dtype)
    values = pa.array(np.random.default_rng(seed).standard_normal(rows * 8).astype(dtype))
    columns = {
        "id": pa.array([f"d{i}" for i in range(rows)]),
        "embedding": pa.FixedSizeListArray.from_arrays(values, type=field.type),
        "n_tokens": pa.array([3] * rows, pa.int32()),
        "truncated": pa.array([i == 0 for i in range(rows)]),
    }
    return pa.table(columns).cast(
        pa.schema([("id", pa.string()), field, ("n_tokens", pa.int32()), ("truncated", pa.bool_())])
    )


def test_vectors_of_bytes_take_a_byte_a_number() -> None:
    vectors = np.random.default_rng(0).standard_normal((1000, 256))
    others = {name: part(1000)[name] for name in ("id", "n_tokens", "truncated")}
    sizes = {}
    for dtype in ("float16", "int8", "binary"):
        columns = to_columns(vectors, dtype)  # type: ignore[arg-type]
        fields = [pa.field(name, column.type) for name, column in others.items()]
        table = pa.Table.from_arrays([*others.values(), *columns.values()], schema=pa.schema([*fields, *columns]))
        sizes[dtype] = len(part_bytes(table))
    assert sizes["int8"] < 1.1 * 256 * 1000 < 0.6 * sizes["float16"]
    assert sizes["binary"] < 0.2 * sizes["int8"]


def line(position: int, reason: str = "empty_text") -> dict[str, object]:
    return {"unit": "u", "source": "c.jsonl", "position": position, "offset": None, "reason": reason}


def commit(folder: Path, rows: int = 5, seed: int = 0, unit: str = "u") -> Record:
    return Sink(str(folder)).commit(unit, part(rows, seed), np.arange(rows), [line(9), line(7, "duplicate")])


def test_the_same_table_gives_the_same_bytes() -> None:
    assert part_bytes(part(100)) == part_bytes(part(100))


def test_vectors_are_written_plain_and_without_statistics() -> None:
    column = pq.ParquetFile(pa.BufferReader(part_bytes(part(100)))).metadata.row_group(0).column(1)
    assert column.path_in_schema == "embedding.list.element"
    assert (set(column.encodings) - {"RLE"}, column.compression, column.is_stats_set) == (
        {"PLAIN"},
        "UNCOMPRESSED",
        False,
    )


def test_the_record_says_what_the_part_holds(tmp_path: Path) -> None:
    record = commit(tmp_path)
    assert (record.rows, record.tokens, record.truncated) == (5, 15, 1)
    assert (record.quarantined, record.duplicates, record.reasons) == (1, 1, {"empty_text": 1})
    assert record.file == f"data/u-{record.sha256[:8]}.parquet"


def test_refused_records_are_in_the_order_of_the_input(tmp_path: Path) -> None:
    commit(tmp_path)
    assert [one["position"] for one in Sink(str(tmp_path)).lines("u")] == [7, 9]


def test_the_first_commit_of_a_unit_wins(tmp_path: Path) -> None:
    first = commit(tmp_path, seed=0)
    assert commit(tmp_path, seed=1) == first
    assert [file.name for file in (tmp_path / "data").iterdir()] == [first.file.removeprefix("data/")]


def test_committed_units_are_known_from_their_records(tmp_path: Path) -> None:
    record = commit(tmp_path)
    assert Sink(str(tmp_path)).committed(["u", "v"]) == {"u": record}


@pytest.mark.parametrize("folder", ["data", "ids"])
def test_a_unit_whose_files_were_cut_short_is_done_again(tmp_path: Path, folder: str) -> None:
    commit(tmp_path)
    [file] = (tmp_path / folder).iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert Sink(str(tmp_path)).committed(["u"]) == {}
    assert commit(tmp_path).rows == 5


def test_ids_that_were_damaged_are_not_believed(tmp_path: Path) -> None:
    record = commit(tmp_path)
    [file] = (tmp_path / "ids").iterdir()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.raises(StorageError, match="was damaged"):
        Sink(str(tmp_path)).hashes(record)


def test_a_flipped_bit_of_a_vector_is_seen_when_it_is_read(tmp_path: Path) -> None:
    table = part(500)
    data = part_bytes(table)
    start = data.index(table["embedding"].chunk(0).flatten().buffers()[1].to_pybytes()[:4000])
    for place in random.Random(0).sample(range(start, start + 8000), 20):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "part.parquet").write_bytes(damaged)
        with pytest.raises(VerificationError, match="CRC checksum"):
            read_part(str(tmp_path / "part.parquet"))
