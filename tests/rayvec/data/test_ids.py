"""Ids as hashes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayvec.data.ids import concatenate, digest_ids, hash_ids, in_partition, repeats


def test_the_digest_does_not_depend_on_the_order() -> None:
    assert digest_ids(hash_ids(pa.array(["a", "b", "c"]))) == digest_ids(hash_ids(pa.array(["c", "a", "b"])))


def test_the_digest_sees_an_id_that_stands_twice() -> None:
    assert digest_ids(hash_ids(pa.array(["a", "b", "b", "b"]))) != digest_ids(hash_ids(pa.array(["a", "b"])))


def test_ids_are_compared_as_bytes() -> None:
    later, _ = repeats(hash_ids(pa.array(["\u00e9", "e\u0301", "\u00c9", "\u00e9"])))  # the second is e and an accent
    assert later.tolist() == [3]


def test_none_repeat_among_none() -> None:
    assert [rows.tolist() for rows in repeats(concatenate([]))] == [[], []]


def test_every_row_falls_into_one_partition() -> None:
    hashes = hash_ids(pa.array([f"d{i}" for i in range(1000)]))
    rows = np.concatenate([in_partition(hashes, number, 3) for number in range(3)])
    assert sorted(rows.tolist()) == list(range(1000))


def test_repeats_in_a_large_table_are_all_found() -> None:
    ids = [f"d{i % 700}" for i in range(1000)]
    later, first = repeats(hash_ids(pa.array(ids)))
    assert later.tolist() == list(range(700, 1000))
    assert first.tolist() == list(range(300))
