"""What an examination found, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]

#: Object stores refuse signatures that are a quarter of an hour off; leases and logs go wrong before.
CLOCK_S = 60.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: an error stops or endangers a run, a warning slows it or may, a note informs."""

    level: Level
    what: str
    cure: str = ""
    node: str = ""


def rendered(findings: Sequence[Finding]) -> str:
    """One line a finding, errors first, each with its cure below."""
    order: dict[Level, int] = {"error": 0, "warning": 1, "note": 2}
    lines: list[str] = []
    for finding in sorted(findings, key=lambda finding: order[finding.level]):
        where = f"{finding.node}: " if finding.node else ""
        lines.append(f"{finding.level:<8} {where}{finding.what}")
        if finding.cure:
            lines.append(f"{'':<8} → {finding.cure}")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain values: whether all is well, and the findings."""
    return {"ok": not any(f.level == "error" for f in findings), "findings": [asdict(f) for f in findings]}
