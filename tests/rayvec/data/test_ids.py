"""Ids as hashes."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rayvec.data import ids
from rayvec.data.ids import digest_ids, hash_ids, repeated_places, repeats


def test_the_digest_does_not_depend_on_the_order() -> None:
    assert digest_ids(hash_ids(pa.array(["a", "b", "c"]))) == digest_ids(hash_ids(pa.array(["c", "a", "b"])))


def test_the_digest_sees_an_id_that_stands_twice() -> None:
    assert digest_ids(hash_ids(pa.array(["a", "b", "b", "b"]))) != digest_ids(hash_ids(pa.array(["a", "b"])))


def test_ids_are_compared_as_bytes() -> None:
    later, _ = repeats(hash_ids(pa.array(["\u00e9", "e\u0301", "\u00c9", "\u00e9"])))  # the second is e and an accent
    assert later.tolist() == [3]


def test_none_repeat_among_none() -> None:
    assert [rows.tolist() for rows in repeats(hash_ids(pa.array([], pa.string())))] == [[], []]


def test_repeats_across_parts_name_the_first_place_whatever_the_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    # 30 parts of 100 ids, d0 to d699 over and over: each later place is of the first part that had the id.
    names = [f"d{i % 700}" for i in range(3000)]
    parts = [hash_ids(pa.array(names[start : start + 100])) for start in range(0, 3000, 100)]
    expected = {(i // 100, i % 100): (i % 700 // 100, i % 700 % 100) for i in range(700, 3000)}
    for partition in (1 << 17, 400, 2):
        monkeypatch.setattr(ids, "PARTITION", partition)
        found = [
            (tuple(a), tuple(b))
            for later, first in repeated_places(iter(parts), 3000)
            for a, b in zip(later.tolist(), first.tolist(), strict=True)
        ]
        assert len(found) == len(expected) and dict(found) == expected


def test_repeats_in_a_large_table_are_all_found() -> None:
    names = [f"d{i % 700}" for i in range(1000)]
    later, first = repeats(hash_ids(pa.array(names)))
    assert later.tolist() == list(range(700, 1000))
    assert first.tolist() == list(range(300))
