"""Writing and reading vectors, our parts beside pyarrow's defaults: python benchmarks/embedding_store.py

The same table (ids and a FixedSizeList of float16 or float32 vectors) to a Parquet file and back, on one thread:

    default     pq.write_table(table) and pq.read_table as they are: dictionary, statistics, snappy
    part        as our sink writes a part (a CRC on each page) and our reader reads it (each CRC verified)
    unchecked   our part read by pyarrow's defaults: what another tool gets

The rows are those of one part (a unit's), the file lies in a temporary folder; what is read must equal what was
written before a time counts. Rates are of the vectors' bytes over CPU seconds of the process, so that a busy machine or
disk does not count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.harness import alternate, in_words, machine, ratio, write_json


def vectors_table(rows: int, dim: int, dtype: str) -> Any:
    """Ids and random vectors of length 1, as in a part."""
    import pyarrow as pa

    from rayvec import schema

    vectors_ND = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    field = schema.embedding_field(dim, dtype)  # type: ignore[arg-type]
    values = pa.array(vectors_ND.astype(dtype).reshape(-1))
    ids = pa.array([f"document-{row:08}" for row in range(rows)])
    lists = pa.FixedSizeListArray.from_arrays(values, type=field.type)
    return pa.table([ids, lists], schema=pa.schema([pa.field(schema.ID, pa.string(), nullable=False), field]))


def measure(*, rows: int, dim: int, dtype: str, rounds: int) -> dict[str, Any]:
    """All figures; variants alternate."""
    import pyarrow.parquet as pq

    from rayvec.data.embeddings import read_part
    from rayvec.encoding.sink import part_bytes

    there = machine()
    table = vectors_table(rows, dim, dtype)
    size = rows * dim * np.dtype(dtype).itemsize
    with tempfile.TemporaryDirectory() as name:
        default, part = Path(name) / "default.parquet", Path(name) / "part.parquet"
        calls: dict[str, Callable[[], Any]] = {
            "write default": lambda: pq.write_table(table, default),
            "write part": lambda: part.write_bytes(part_bytes(table)),
            "read default": lambda: pq.read_table(default, use_threads=False),
            "read part": lambda: read_part(str(part)),
            "read unchecked": lambda: pq.read_table(part, use_threads=False),
        }
        for call in ("write default", "write part"):
            calls[call]()
        if any(not calls[f"read {which}"]().equals(table) for which in ("default", "part", "unchecked")):
            raise SystemExit("what was read is not what was written, so times mean nothing")
        timings = alternate(calls, rounds)
        sizes = {"default": default.stat().st_size, "part": part.stat().st_size}
    return {
        "machine": there,
        "rows": rows,
        "dim": dim,
        "dtype": dtype,
        "vector_bytes": size,
        "file_bytes": sizes,
        "gigabytes_per_second": {name: size / 1e9 / timing.medians["cpu"] for name, timing in timings.items()},
        "seconds": {name: timing.medians for name, timing in timings.items()},
        "time_ratio": {
            "write": ratio(timings, "write default", "write part"),
            "read": ratio(timings, "read default", "read part"),
        },
    }


@click.command(help=__doc__)
@click.option("--rows", default=4096, show_default=True)
@click.option("--dim", default=1024, show_default=True)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **shape: Any) -> None:
    result = measure(**shape)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(f"{result['rows']:,} vectors of {result['dim']} {result['dtype']}, {result['vector_bytes'] / 1e6:.0f} MB")
    print(f"{'':<16}{'wall s':>8}{'cpu s':>8}{'GB/s':>8}")
    for name, seconds in result["seconds"].items():
        rate = result["gigabytes_per_second"][name]
        print(f"{name:<16}{seconds['wall']:>8.3f}{seconds['cpu']:>8.3f}{rate:>8.2f}")
    for name, found in result["time_ratio"].items():
        print(f"{name}: {found['cpu']:.1f}x in CPU time, {found['wall']:.1f}x by the clock")


if __name__ == "__main__":
    main()
