"""Ids as 128-bit hashes: finding duplicates and comparing sets of ids without holding strings.

Two ids are taken to be equal when their BLAKE2b-128 hashes are: among 10^9 ids the chance of one false pair is 10^-21.
Knows Arrow string columns and numpy. Knows no file, no unit, no Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Legend: N rows; a hash is two unsigned 64-bit words, so hashes are [N, 2].
Hashes = npt.NDArray[np.uint64]
WORDS = np.dtype("<u8")


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


def partitions(total: int, limit: int = 1 << 25) -> int:
    """In how many passes `total` hashes are compared, so that one pass holds at most about `limit` of them."""
    return max(1, -(-total // limit))


def in_partition(hashes: Hashes, number: int, count: int) -> npt.NDArray[np.int64]:
    """The rows of partition `number` of `count`: equal ids always fall into the same one."""
    return np.flatnonzero(hashes[:, 0] % np.uint64(count) == np.uint64(number))


def concatenate(parts: Sequence[Hashes]) -> Hashes:
    """Hashes of several tables as one, also of none."""
    return np.concatenate([np.empty((0, 2), WORDS), *parts])
