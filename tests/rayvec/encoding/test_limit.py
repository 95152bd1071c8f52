"""The limit of quarantine: passed when nothing to come can undo it, and not before."""

from __future__ import annotations

from rayvec.data.units import Unit
from rayvec.encoding.limit import QuarantineLimit
from rayvec.encoding.sink import Record


def unit(name: str, rows: int) -> Unit:
    return Unit(name, "list", "memory", 0, rows, 0, rows, 0)


def record(name: str, rows: int, refused: int) -> Record:
    return Record(
        unit=name,
        file="",
        rows=rows,
        documents=rows,
        bytes=0,
        sha256="",
        quarantined=refused,
        duplicates=0,
        truncated=0,
        tokens=0,
        id_digest="",
        reasons={"empty_text": refused} if refused else {},
        quarantine_sha256=None,
    )


UNITS = [unit("a", 99), unit("b", 99), unit("c", 99)]


def test_it_is_passed_when_the_rest_may_be_perfect() -> None:
    limit = QuarantineLimit.of(0.01, UNITS, {})
    limit.add(record("b", 97, 3))
    assert (limit.refused, limit.total, limit.is_passed) == (3, 300, False)  # 3 of 300 is what is allowed
    limit.add(record("a", 99, 1))
    assert (limit.refused, limit.total, limit.is_passed) == (4, 300, True)
    assert set(limit.planned) == {"c"}


def test_what_was_done_before_counts() -> None:
    limit = QuarantineLimit.of(0, UNITS, {"a": record("a", 99, 1)})
    assert limit.is_passed and limit.reasons == {"empty_text": 1}


def test_the_order_of_units_does_not_matter_in_the_end() -> None:
    records = [record("a", 90, 9), record("b", 99, 0), record("c", 99, 0)]
    ends = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        limit = QuarantineLimit.of(0.03, UNITS, {})
        for place in order:
            limit.add(records[place])
        ends.append((limit.refused, limit.total, limit.is_passed))
    assert ends == [(9, 297, True)] * 3
