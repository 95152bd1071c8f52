"""What of a corpus did not come into the result: how much of that is allowed, how it is told, and its cure.

Knows counts and settings. Knows no encoder, no Ray.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.report import Report
from rayvec.data.source_config import SourceConfig
from rayvec.errors import QuarantineExceededError

if TYPE_CHECKING:
    from rayvec.encoding.limit import QuarantineLimit

LOG = logging.getLogger("rayvec.embed")

#: So many values of a column may be null for not fitting it, whatever their share, unless none may: slips.
_FEW_VALUES = 10
_NULLED_CURE = "write its values as one type, or leave it out with --set 'source.payload=[…]' into another output"
#: Of columns that began later, so many are named in a line.
_NAMED = 8


@dataclass(frozen=True)
class Losses:
    """What a run may lose: the share of the records, and of the values of a column, that `most` is."""

    source: SourceConfig
    most: float
    output: str

    def check_running(self, limit: QuarantineLimit) -> None:
        """Stop a run that is certain to pass its limit; one whose units are all done is published first.

        Raises QuarantineExceededError.
        """
        if limit.planned and limit.is_passed:
            raise QuarantineExceededError(
                f"stopped with {len(limit.planned)} units to do: {limit.refused} of at most {limit.total} records are "
                f"quarantined ({_told(limit.reasons)}), more than max_quarantine = {self.most:g} allows; see "
                f"{self.output}/quarantine, and go on with a higher --set max_quarantine=…"
                f"{self._encoding_cure(limit.reasons)}"
            )

    def check(self, report: Report) -> None:
        """Raise QuarantineExceededError where a run that is done and published has lost more."""
        refused, total = sum(report["quarantined"].values()), report["inputs"]
        if refused > self.most * total:
            raise QuarantineExceededError(
                f"done and published, but {refused} of {total} records were quarantined "
                f"({_told(report['quarantined'])}), more than max_quarantine = {self.most:g} allows; see "
                f"{self.output}/quarantine{self._encoding_cure(report['quarantined'])}"
            )
        for name, lost in report.get("nulled", {}).items():
            given = report["values"][name]
            few = _FEW_VALUES if self.most else 0
            if lost > max(self.most * given, few):
                raise QuarantineExceededError(
                    f"done and published, but {lost:,} of {given:,} values of the payload column {name!r} do not fit "
                    f"its type and are null, more than max_quarantine = {self.most:g} allows; {_NULLED_CURE}, or "
                    "accept it with a higher --set max_quarantine=…"
                )

    def _encoding_cure(self, reasons: Mapping[str, int]) -> str:
        if not reasons.get("invalid_utf8") or self.source.kind in ("parquet", "hf", "pydocs"):
            return ""
        if self.source.encoding:
            return f"; invalid_utf8 may mean that the files are not {self.source.encoding}: check source.encoding"
        return "; where invalid_utf8 is a text file in another encoding, name it, as in --set source.encoding=latin-1"


def tell_of_payload(report: Report) -> None:
    """Warn of payload values that did not come into the result."""
    for name, lost in report.get("nulled", {}).items():
        values = f"{lost:,} of {report['values'][name]:,} values"
        LOG.warning("payload column %r: %s do not fit its type and are null; %s", name, values, _NULLED_CURE)
    later = report.get("began_later", {})
    if later:
        told = ", ".join(f"{name} {count:,}" for name, count in itertools.islice(later.items(), _NAMED))
        more = f" and {len(later) - _NAMED} or more others" if len(later) > _NAMED else ""
        LOG.warning(
            "columns that began later than where the plan looked are not carried: %s%s; embed into another output with "
            "--set 'source.payload=[…]' that names them beside the others",
            told,
            more,
        )


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
