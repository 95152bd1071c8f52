"""The limit of quarantine: passed when nothing to come can undo it, and not before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayvec.data.units import Unit
from rayvec.encoding.limit import QuarantineLimit
from rayvec.encoding.sink import Record, Sink
from tests.rayvec.encoding.test_sink import line, part

UNITS = [Unit(name, "list", "memory", 0, 99, 0, 99, 0) for name in ("a", "b", "c")]


def record(output: Path, name: str, rows: int, refused: int) -> Record:
    return Sink(str(output)).commit(name, part(rows), np.arange(rows), [line(i) for i in range(refused)])


def test_it_is_passed_when_the_rest_may_be_perfect(tmp_path: Path) -> None:
    limit = QuarantineLimit.of(0.01, UNITS, {})
    limit.add(record(tmp_path, "b", 97, 3))
    assert (limit.refused, limit.total, limit.is_passed) == (3, 300, False)  # 3 of 300 is what is allowed
    limit.add(record(tmp_path, "a", 99, 1))
    assert (limit.refused, limit.total, limit.is_passed) == (4, 300, True)
    assert set(limit.planned) == {"c"}


def test_what_was_done_before_counts(tmp_path: Path) -> None:
    limit = QuarantineLimit.of(0, UNITS, {"a": record(tmp_path, "a", 99, 1)})
    assert limit.is_passed and limit.reasons == {"empty_text": 1}


def test_the_order_of_units_does_not_matter_in_the_end(tmp_path: Path) -> None:
    records = [record(tmp_path, "a", 90, 9), record(tmp_path, "b", 99, 0), record(tmp_path, "c", 99, 0)]
    ends = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        limit = QuarantineLimit.of(0.03, UNITS, {})
        for place in order:
            limit.add(records[place])
        ends.append((limit.refused, limit.total, limit.is_passed))
    assert ends == [(9, 297, True)] * 3
