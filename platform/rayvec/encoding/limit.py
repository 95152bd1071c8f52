"""How much may be quarantined: when it is certain that a run will pass the limit. Knows records' counts only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rayvec.data.units import Unit
from rayvec.encoding.sink import Record


@dataclass
class QuarantineLimit:
    """Weighs what is refused against all records that there can be.

    Of units that are not done the plan's number of records counts, which is never too small. So a run that would end
    below the limit is never stopped; and whether one is stopped or ends above it depends on the input alone, not on the
    order in which units are done.
    """

    share: float
    #: Records of each unit that is not done.
    planned: dict[str, int]
    done: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, share: float, units: Iterable[Unit], done: Mapping[str, Record]) -> QuarantineLimit:
        """For a plan's units, some of which are done."""
        # One more each: of a damaged file's last unit the damage itself is refused too.
        limit = cls(share, {unit.name: unit.rows_estimate + 1 for unit in units})
        for record in done.values():
            limit.add(record)
        return limit

    def add(self, record: Record) -> None:
        """Another unit is done."""
        self.planned.pop(record.unit, None)
        self.done += record.input_records
        self.reasons.update(record.reasons)

    @property
    def refused(self) -> int:
        """Records quarantined so far."""
        return self.reasons.total()

    @property
    def total(self) -> int:
        """Records that there are, at most."""
        return self.done + sum(self.planned.values())

    @property
    def is_passed(self) -> bool:
        """Whether more is refused than may be at the end, whatever the units to come hold."""
        return self.refused > self.share * self.total
