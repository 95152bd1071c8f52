"""Steps of a line: told when they start, timed, skipped when they are done. Knows nothing of what a step does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.report import Report, summary_line
from rayvec import storage
from rayvec.storage import JsonObject


@dataclass(frozen=True)
class Step:
    """A piece of work that leaves a file when it is done, and can be run again when it was not."""

    title: str
    #: The file, at a path or URI, that says it is done.
    done: str
    #: The work, and what to tell of it.
    run: Callable[[], Report]
    #: A name for records, and what decides the result: a step that was asked something else is run again.
    name: str = ""
    asked: str = ""


@dataclass
class Line:
    """Steps in their order; `record`, if given, is a file that keeps what each was asked, and what it told."""

    steps: Sequence[Step]
    record: str = ""

    def __post_init__(self) -> None:
        kept = bool(self.record) and storage.exists(self.record)
        self.records: JsonObject = storage.read_json(self.record) if kept else {}

    def is_done(self, step: Step) -> bool:
        """Whether its file is there, and, where records are kept, is of the same question."""
        asked = not self.record or self.records.get(step.name, {}).get("asked") == step.asked
        return asked and storage.exists(step.done)

    @property
    def pending(self) -> list[Step]:
        """The steps that are not done."""
        return [step for step in self.steps if not self.is_done(step)]

    def run(self) -> None:
        """Run what is not done, in order; what fails ends the line, and the same line goes on there."""
        for number, step in enumerate(self.steps, 1):
            self.run_step(step, f"[{number}/{len(self.steps)}] {step.title}")

    def run_step(self, step: Step, head: str) -> None:
        """Run one step, unless it is done."""
        if self.is_done(step):
            say(f"{head}: done already")
            return
        say(head)
        self._forget_from(step)
        begin = time.monotonic()
        report = step.run()
        seconds = round(time.monotonic() - begin, 1)
        if report:
            say(f"      {summary_line(report)}")
        say(f"      {seconds:.0f} s")
        if self.record:
            self.records[step.name] = {"asked": step.asked, "seconds": seconds, "report": report}
            storage.write_json(self.record, self.records)

    def _forget_from(self, step: Step) -> None:
        """What follows a step that is run again is asked again too, and finds out by itself whether it still holds."""
        names = [other.name for other in self.steps]
        kept = set(names[: names.index(step.name)]) if self.record else set()
        if self.records.keys() - kept:
            self.records = {name: value for name, value in self.records.items() if name in kept}
            storage.write_json(self.record, self.records)


def told(report: Report, *names: str) -> Report:
    """Of a report, what fits on one line."""
    return {name: report[name] for name in names or report if report.get(name) not in (None, {}, [])}


def shown(path: Path) -> str:
    """A path as it is shortest from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def say(line: str) -> None:
    """A line for the person who waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
