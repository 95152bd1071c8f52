"""Before anything is mined: the pairs on disk, unit by unit, and the positives among the documents of the index.

Both lie in the run's working folder, which every worker sees. Knows no encoder.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines._mining import PAIR, Task
from rayvec.data.pair_files import PairLine
from rayvec.errors import UserError
from rayvec.indexing import places, tasks
from rayvec.indexing.mining import Hashes, Keys, Positives, scan_documents, text_hash
from rayvec.indexing.ranking import NO_ROW
from rayvec.indexing.searcher import DOCUMENTS, Index
from rayvec.indexing.segments import load_dropped, segments_of
from rayvec.schema import PARENT_ID
from rayvec.storage import JsonObject

#: Row groups of the index's documents that are worth a task of their own.
GROUPS_A_TASK = 256


class Staged(NamedTuple):
    """What the driver keeps of the pairs: hashes of query and positive text (0: none), ids, and where units start."""

    queries: Hashes
    texts: Hashes
    ids: pa.Array
    starts: list[int]


def stage_pairs(task: Task, pairs: Iterator[PairLine], unit_rows: int, *, where: str) -> Staged:
    """Write the pairs unit by unit to the working folder. Raises UserError when a line is no pair, or none is there."""
    queries, texts, starts = array("Q"), array("Q"), []
    ids: list[pa.Array] = []
    task.pairs_file(0).parent.mkdir()
    for unit in itertools.count():
        some = list(itertools.islice(pairs, unit_rows))
        if not some:
            break
        starts.append(len(queries))
        queries.extend(text_hash(pair.query) for pair in some)
        texts.extend(text_hash(pair.positive) if pair.positive else 0 for pair in some)
        table = pa.Table.from_pylist([pair._asdict() for pair in some], schema=PAIR)
        ids.append(table["positive_id"].combine_chunks())
        pq.write_table(table, task.pairs_file(unit), use_dictionary=False)
    if not starts:
        raise UserError(f"pairs = {where}: no pairs are there; give lines with query and positive")
    return Staged(np.array(queries, np.uint64), np.array(texts, np.uint64), pa.concat_arrays(ids), starts)


def check_windows(opened: Index, staged: Staged, *, where: str) -> None:
    """Of a document that is there as windows, its whole text does not tell which they are: its id must.

    Raises UserError.
    """
    if PARENT_ID in opened.columns and (without := staged.ids.null_count):
        raise UserError(
            f"{without} pairs have no positive_id, and the index {where} holds windows of documents, where a "
            "document's id alone says which of them answer; give positive_id, or mine from an index of whole documents"
        )


def hash_documents(task: Task, staged: Staged, *, where: str) -> Positives:
    """Hash every document of the index, and find the positives among them; both go to the working folder.

    On the Ray that runs. Raises UserError where a pair's only positive is not in the index.
    """
    import ray

    wanted = staged.ids.drop_null().unique()
    shared = ray.put(wanted)
    folder = places.version_folder(task.index, task.manifest["version"])
    ranges = _document_ranges(folder, task.manifest)
    with places.where_it_is_read(task.index):
        found = list(tasks.each(scan_documents, [(*range_, task.titles, shared) for _, range_ in ranges]))
    dropped = load_dropped(folder, task.manifest)
    Keys.concatenate([keys for keys, _, _ in found]).save(task.folder / "keys")
    # One more place, at the end, stands for pairs without an id.
    row_of = np.full(len(wanted) + 1, NO_ROW, np.int64)
    # Backwards: of a document's windows the first one stands for it.
    for (start, _), (_, positions, rows) in reversed(list(zip(ranges, found, strict=True))):
        live = ~np.isin(rows + start, dropped)
        row_of[positions[live][::-1]] = rows[live][::-1] + start
    rows = row_of[pc.index_in(staged.ids, value_set=wanted, skip_nulls=True).fill_null(len(wanted)).to_numpy()]
    _check_positives(staged, (staged.texts == 0) & (rows == NO_ROW), where)
    positives = Positives.group(staged.queries, staged.texts, rows)
    positives.save(task.folder / "positives")
    return positives


def _document_ranges(folder: Path, manifest: JsonObject) -> list[tuple[int, tuple[Path, int, int]]]:
    """The row groups of all segments' documents, so many a task, each with the row where its segment starts."""
    files = [(segment.start, segment.file(folder, DOCUMENTS)) for segment in segments_of(manifest)]
    counts = [pq.read_metadata(path, memory_map=True).num_row_groups for _, path in files]
    return [
        (row, (path, start, min(start + GROUPS_A_TASK, count)))
        for (row, path), count in zip(files, counts, strict=True)
        for start in range(0, count, GROUPS_A_TASK)
    ]


def _check_positives(staged: Staged, missing: npt.NDArray[np.bool_], where: str) -> None:
    if missing.any():
        id_ = staged.ids[int(missing.argmax())].as_py()
        raise UserError(
            f"{int(missing.sum())} pairs give positive_id alone, and no such document is in the index {where} "
            f"({id_!r} is the first); give their texts as positive, or leave them out"
        )
