"""What a person sees while a run is going: a line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from rayvec.encoding.sink import Record
from rayvec.encoding.spent import Spent

EVERY_S = {True: 0.2, False: 15.0}
BAR = 24


@dataclass
class Progress:
    """Counts records as units are committed; tells rows, tokens a second, time left, and what workers are busy with."""

    total: int
    label: str = "embedding"
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    rows: int = 0
    tokens: int = 0
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self.shown = self.clock()
        #: When the first unit was committed, and what it held: speed is told from there on, without the start.
        self.first: tuple[float, int, int] | None = None
        self.on_terminal = self.stream.isatty()

    def add(self, record: Record, spent: Spent) -> None:
        """Another unit is committed."""
        self.spent.add(spent)
        self.rows += record.input_records
        self.tokens += record.tokens
        now = self.clock()
        if self.first is None:
            self.first = (now, self.rows, self.tokens)
        if now - self.shown >= EVERY_S[self.on_terminal] or self.rows >= self.total:
            self.shown = now
            self._show(now)

    def close(self) -> None:
        """End the line on a terminal."""
        if self.on_terminal and self.rows:
            self.stream.write("\n")

    def _show(self, now: float) -> None:
        self.stream.write(f"\r{self.line(now)}\x1b[K" if self.on_terminal else f"{self.line(now)}\n")
        self.stream.flush()

    def line(self, now: float) -> str:
        """One line: how far, how fast, how long still."""
        share = min(1.0, self.rows / max(self.total, 1))
        bar = "█" * round(share * BAR) + "·" * (BAR - round(share * BAR)) + " " if self.on_terminal else ""
        line = f"{self.label} {bar}{share:4.0%} {self.rows:,} of {max(self.total, self.rows):,} records"
        began, rows, tokens = self.first or (now, 0, 0)
        if now <= began or self.rows == rows:
            return line
        left = (now - began) * max(self.total - self.rows, 0) / (self.rows - rows)
        line += f", {(self.tokens - tokens) / (now - began):,.0f} tokens/s, {_duration(left)} left"
        return line + "".join(f", {step} {share:.0%}" for step, share in self.spent.shares.items())


def _duration(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
