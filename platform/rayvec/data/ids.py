"""Ids as 128-bit hashes: finding duplicates and comparing sets of ids without holding strings.

Two ids are taken to be equal when their BLAKE2b-128 hashes are: among 10^9 ids the chance of one false pair is 10^-21.
Knows Arrow string columns and numpy. Knows no unit, no artifact, no Ray.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Legend: N rows; a hash is two unsigned 64-bit words, so hashes are [N, 2].
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
WORDS = np.dtype("<u8")
#: Hashes that are sorted at once, until there are so many that the files would be too many.
PARTITION = 1 << 17
MOST_PARTITIONS = 1024


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> Hashes:
    """The BLAKE2b-128 hash of each id, [N, 2]."""
    digests = b"".join(hashlib.blake2b(value.encode(), digest_size=16).digest() for value in ids.to_pylist())
    return np.frombuffer(digests, dtype=WORDS).reshape(-1, 2)


def digest_ids(hashes: Hashes) -> str:
    """48 hex digits that stand for the set of ids, whatever their order: count, XOR and sum of the hashes."""
    xor = np.bitwise_xor.reduce(hashes, axis=0)
    total = hashes.sum(axis=0, dtype=np.uint64)  # wraps at 2^64, as it should
    words = [len(hashes), *xor.tolist(), *total.tolist()]
    return hashlib.sha256("".join(f"{word:016x}" for word in words).encode()).hexdigest()[:48]


def repeats(hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows whose id stood in an earlier row, ascending, and for each the first row with that id.

    >>> later, first = repeats(hash_ids(pa.array(["a", "b", "a", "a"])))
    >>> later.tolist(), first.tolist()
    ([2, 3], [0, 0])
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes keep their order of rows
    sorted_N2 = hashes[order]
    same = np.zeros(len(order), bool)
    same[1:] = (sorted_N2[1:] == sorted_N2[:-1]).all(axis=1)
    heads = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    later, first = order[same], order[heads[same]]
    ascending = np.argsort(later)
    return later[ascending].astype(np.int64), first[ascending].astype(np.int64)


def repeated_places(parts: Iterable[Hashes], total: int) -> Iterator[tuple[Places, Places]]:
    """Where an id stands that an earlier place has: later places [R, 2], and for each the first; each pair once.

    A place is (number of the part, row in it). Parts are gone through once; equal hashes meet in one of several
    temporary files, of which one at a time is in memory: 32 bytes of disk a hash, and memory that does not grow with
    their number until there are 2^27.
    """
    count = min(MOST_PARTITIONS, -(-total // PARTITION)) or 1
    with tempfile.TemporaryDirectory(prefix="rayvec-ids-") as folder:
        for number, hashes in enumerate(parts):
            _append(Path(folder), number, hashes, count)
        for file in sorted(Path(folder).iterdir()):
            words = np.fromfile(file, WORDS).reshape(-1, 4)
            later, first = repeats(words[:, :2])
            if len(later):
                places = words[:, 2:].astype(np.int64)
                yield places[later], places[first]


def count_distinct(parts: Iterable[Hashes], total: int) -> int:
    """How many different hashes the parts hold. total: about how many in all; memory stays as in `repeated_places`."""
    seen = 0

    def counted() -> Iterator[Hashes]:
        nonlocal seen
        for part in parts:
            seen += len(part)
            yield part

    again = sum(len(later) for later, _ in repeated_places(counted(), total))
    return seen - again


def _append(folder: Path, part: int, hashes: Hashes, count: int) -> None:
    """Each hash with its place at the end of the file that all equal ones come to."""
    words = np.column_stack([hashes, np.full(len(hashes), part, WORDS), np.arange(len(hashes), dtype=WORDS)])
    of_row = (hashes[:, 0] % np.uint64(count)).astype(np.int64)
    order = np.argsort(of_row, kind="stable")
    ends = np.cumsum(np.bincount(of_row, minlength=count))
    for number, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
        if start < end:
            with (folder / f"{number:04}").open("ab") as file:
                file.write(words[order[start:end]].tobytes())


def concatenate(parts: Sequence[Hashes]) -> Hashes:
    """Hashes of several tables as one, also of none."""
    return np.concatenate([np.empty((0, 2), WORDS), *parts])
