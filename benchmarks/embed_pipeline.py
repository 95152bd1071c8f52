"""The embedding pipeline beside a plain loop: python benchmarks/embed_pipeline.py --documents 10000 --documents 100000

For each number of documents (random words, log-normal lengths), in one run:

    pipeline    pipelines.embed in a process of its own, with a Ray of its own; its memory is looked at meanwhile
    encode      one process that reads the same file, tokenizes and encodes with the same encoder and threads
    write       the same, and writes a part a unit: all that must be done, without Ray, records and restart

The pipeline's speed is told between its first and its last commit (steady), from the times of the records; what comes
before and after is its fixed part. Memory is the most that was anonymous (no shared object store) of the driver, of the
largest of Ray's workers and of all of them together. Speed is by the clock, so it needs a quiet machine.

With --committed N, how long a run takes to know N committed units, each with its part, ids and record in place.
The cheap encoder `hash` shows what the pipeline itself costs; with `tiny` give it a minute's work.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.harness import in_words, machine, write_json

CHUNK = 10_000
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
CHILD = """
import json, sys
from pipelines.embed import EmbedConfig, embed
embed(EmbedConfig.model_validate(json.loads(sys.argv[1])))
"""


def write_corpus(path: Path, count: int, mean: float) -> None:
    """A Parquet file of ids and texts of random words, in row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(LETTERS, size)) for size in generator.integers(2, 9, 5000)])
    with pq.ParquetWriter(path, pa.schema([("id", pa.string()), ("text", pa.string())])) as writer:
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            lengths = np.clip(np.rint(generator.lognormal(np.log(mean) - 0.32, 0.8, size)), 4, 400).astype(int)
            drawn = np.split(words[generator.integers(0, len(words), lengths.sum())], np.cumsum(lengths)[:-1])
            texts = [" ".join(some) for some in drawn]
            writer.write_table(pa.table({"id": [f"d{start + i:09}" for i in range(size)], "text": texts}))


def loop(corpus: Path, reference: str, unit_rows: int, output: Path | None) -> dict[str, float]:
    """Read, tokenize, encode, and (with an output) write, in this process: tokens, and seconds after the loading."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayvec import schema
    from rayvec.data.vector_types import to_columns
    from rayvec.encoding.sink import part_bytes
    from rayvec.modeling.encoder import load_encoder

    encoder = load_encoder(reference)
    encoder.encode(["warming up"])
    tokens, started = 0, time.perf_counter()
    for number, batch in enumerate(pq.ParquetFile(corpus).iter_batches(unit_rows)):
        read = encoder.tokenize(batch.column("text").to_pylist())
        vectors_ND = encoder.encode_tokens(read)
        tokens += int(read.lengths.sum())
        if output is None:
            continue
        columns = {schema.ID: batch.column("id"), schema.TEXT: batch.column("text")}
        columns |= {field.name: array for field, array in to_columns(vectors_ND, "float32").items()}
        columns |= {schema.N_TOKENS: pa.array(read.lengths.astype(np.int32))}
        columns |= {schema.TRUNCATED: pa.array(read.truncated)}
        (output / f"{number}.parquet").write_bytes(part_bytes(pa.table(columns)))
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


def pipeline(corpus: Path, reference: str, unit_rows: int, threads: int, output: Path) -> dict[str, Any]:
    """The pipeline's seconds, speed and memory."""
    import json

    from rayvec import storage

    config = {
        "source": {"path": str(corpus)},
        "encoder": reference,
        "output": str(output),
        "unit_rows": unit_rows,
        "threads": threads,
    }
    began, started = time.time(), time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(config)], stderr=subprocess.PIPE, text=True)
    with memory_of(child.pid) as peaks:
        _, errors = child.communicate()
    seconds = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"the pipeline failed: {errors[-2000:]}")
    files = sorted((output / "units").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    tokens = [storage.read_json(str(file))["tokens"] for file in files]
    times = [file.stat().st_mtime for file in files]
    steady = times[-1] - times[0]
    return {
        "seconds": seconds,
        "first_commit_after": times[0] - began,
        "steady_seconds": steady,
        "steady_tokens_per_second": sum(tokens[1:]) / steady if steady > 0 else None,
        "units": len(files),
        "tokens": sum(tokens),
        "megabytes": {name: round(value / 1024) for name, value in peaks.items()},
    }


@contextlib.contextmanager
def memory_of(root: int) -> Iterator[dict[str, int]]:
    """Peaks in kB of anonymous memory of a process ("driver") and of Ray's workers below it, seen every 0.1 s."""
    peaks = {"driver": 0, "largest_worker": 0, "workers": 0}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            workers = [_anonymous(pid) for pid in _descendants(root) if _command(pid).startswith("ray::")]
            now = {"driver": _anonymous(root), "largest_worker": max(workers, default=0), "workers": sum(workers)}
            peaks.update({name: max(peaks[name], value) for name, value in now.items()})

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        stop.set()
        watcher.join()


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, below = [root], [root]
    while below:
        below = [pid for pid, parent in parents.items() if parent in below]
        found += below
    return found[1:]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def resume(output: Path, count: int) -> dict[str, float]:
    """Seconds until `count` committed units are known, each record read: the first of three times, and the best."""
    import pyarrow as pa

    from rayvec import schema, storage
    from rayvec.data.vector_types import to_columns
    from rayvec.encoding.sink import Sink

    table = pa.table({schema.ID: ["a"], schema.N_TOKENS: pa.array([3], pa.int32()), schema.TRUNCATED: [False]})
    for field, array in to_columns(np.ones((1, 8), np.float32), "float32").items():
        table = table.append_column(field, array)
    sink, units = Sink(str(output)), [f"unit-{number:06}" for number in range(count)]
    first = sink.commit(units[0], table, np.zeros(1, np.int64), [])
    copies = {
        folder: [(file.name, file.read_bytes()) for file in (output / folder).iterdir()] for folder in ("data", "ids")
    }
    for unit in units[1:]:
        for folder, files in copies.items():
            for name, data in files:
                (output / folder / name.replace(units[0], unit)).write_bytes(data)
        record = replace(first, unit=unit, file=first.file.replace(units[0], unit))
        (output / "units" / f"{unit}.json").write_bytes(storage.to_json(record.to_json()))
    seconds, cpu = [], []
    for _ in range(3):
        wall, process = time.perf_counter(), time.process_time()
        assert len(sink.committed(units)) == count, "every unit is known as committed"
        seconds.append(time.perf_counter() - wall)
        cpu.append(time.process_time() - process)
    return {"units": count, "first_seconds": seconds[0], "best_seconds": min(seconds), "cpu_seconds": min(cpu)}


def measure(
    *, documents: tuple[int, ...], encoder: str, mean: float, unit_rows: int, threads: int, committed: int
) -> dict[str, Any]:
    """All figures."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    there = machine()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in documents:
            corpus, parts, output = folder / f"{count}.parquet", folder / f"parts-{count}", folder / f"output-{count}"
            write_corpus(corpus, count, mean)
            parts.mkdir()
            found: dict[str, Any] = {
                "documents": count,
                "pipeline": pipeline(corpus, encoder, unit_rows, threads, output),
                "encode": loop(corpus, encoder, unit_rows, None),
                "write": loop(corpus, encoder, unit_rows, parts),
            }
            assert found["pipeline"]["tokens"] == found["write"]["tokens"], "the same texts were read"
            steady = found["pipeline"]["steady_tokens_per_second"]
            found["steady_over"] = {
                name: steady and steady * found[name]["seconds"] / found[name]["tokens"] for name in ("encode", "write")
            }
            rows.append(found)
        known = resume(folder / "committed", committed) if committed else None
    return {"machine": there, "encoder": encoder, "runs": rows, "resume": known}


@click.command(help=__doc__)
@click.option("--documents", type=int, multiple=True, default=(10_000, 100_000), show_default=True)
@click.option("--encoder", default="hash:64", show_default=True)
@click.option("--mean", default=60.0, show_default=True, help="words of a text")
@click.option("--unit-rows", default=4096, show_default=True)
@click.option("--threads", default=1, show_default=True, help="of the encoder, in both")
@click.option("--committed", default=10_000, show_default=True, help="units that a resumed run finds done; 0 for none")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None)
def main(json_path: Path | None, **options: Any) -> None:
    result = measure(**options)
    write_json(json_path, result)
    print(in_words(result["machine"]))
    print(
        f"{'documents':>10}{'s':>8}{'start s':>9}{'steady s':>10}{'tokens/s':>10}{'of encode':>11}{'of write':>10}  MB"
    )
    for run in result["runs"]:
        found, over = run["pipeline"], run["steady_over"]
        line = f"{run['documents']:>10,}{found['seconds']:>8.1f}{found['first_commit_after']:>9.1f}"
        line += f"{found['steady_seconds']:>10.1f}{found['steady_tokens_per_second'] or 0:>10,.0f}"
        line += f"{over['encode'] or 0:>11.2f}{over['write'] or 0:>10.2f}  {found['megabytes']}"
        print(line)
    if result["resume"]:
        found = result["resume"]
        print(
            f"{found['units']:,} committed units known in {found['first_seconds']:.2f} s, "
            f"again in {found['best_seconds']:.2f} s (CPU {found['cpu_seconds']:.2f} s)"
        )


if __name__ == "__main__":
    main()
