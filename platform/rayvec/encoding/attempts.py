"""Finding the record that a unit cannot be done with: by exception, or by the death of the worker.

An exception is followed by halving, down to the record. A death leaves no exception, so each attempt is marked on
storage before it begins; from the third on, records are done one by one, each marked first, and one that was seen dead
twice is given up. With this Ray's endless retry of a dead worker makes progress. Knows nothing of what the work is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from rayvec import storage, uris
from rayvec.errors import RayvecError

T = TypeVar("T")
Rows = npt.NDArray[np.int64]

WHOLE_ATTEMPTS = 2  # deaths that may be chance: a node lost, a driver killed
DEATHS_ALLOWED = 1  # of one record; with the next it is given up
SPARE_ATTEMPTS = 8  # deaths outside any record before the unit is called impossible
SYSTEMIC = 16  # so many records that all fail the same way are no bad records but a bad worker
WORKER_CRASH = "worker_crash"


@dataclass
class Attempts:
    """The marker of one unit's attempts at one stage, kept as `attempts/<unit>.<stage>.json` until the unit is done."""

    uri: str
    number: int = 0
    current: int | None = None
    deaths: dict[int, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, output: str, unit: str, stage: str) -> Attempts:
        """Read what earlier attempts left, count this one and mark it. Raises RayvecError when it is hopeless."""
        self = cls(uris.join(output, "attempts", f"{unit}.{stage}.json"))
        # Not asked for first: the worker of a run that was killed may finish, and forget it, in between.
        with contextlib.suppress(FileNotFoundError):
            saved = storage.read_json(self.uri)
            self.number = saved["number"]
            self.deaths = {int(row): count for row, count in saved["deaths"].items()}
            if saved["current"] is not None:
                self.deaths[saved["current"]] = self.deaths.get(saved["current"], 0) + 1
        self.number += 1
        if self.number > WHOLE_ATTEMPTS + SPARE_ATTEMPTS + sum(self.deaths.values()):
            self.finish()
            raise RayvecError(
                f"unit {unit} killed its {stage} worker {self.number - 1} times, outside any single record; "
                "give the workers more memory, or use a smaller unit_rows"
            )
        self._save()
        return self

    @property
    def careful(self) -> bool:
        """Whether workers have died so often that records are done one by one."""
        return self.number > WHOLE_ATTEMPTS

    def given_up(self, row: int) -> bool:
        """Whether this record has killed too many workers."""
        return self.deaths.get(row, 0) > DEATHS_ALLOWED

    def enter(self, row: int | None) -> None:
        """Mark the record that is tried next; None when the last one is done."""
        self.current = row
        self._save()

    def finish(self) -> None:
        """The stage is done, or is given up: forget its attempts."""
        storage.delete(self.uri)

    def _save(self) -> None:
        state = {"number": self.number, "current": self.current, "deaths": self.deaths}
        storage.write_bytes(self.uri, storage.to_json(state), durable=False)  # it need only outlive this process


@dataclass
class Outcome(Generic[T]):
    """What became of the records: results with the rows they are of, and a reason for each row that failed."""

    pieces: list[tuple[Rows, T]] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    details: dict[int, str] = field(default_factory=dict)


def survive(work: Callable[[Rows], T], count: int, attempts: Attempts) -> Outcome[T]:
    """Do the work for rows 0…count-1, all at once if that goes well, and find the rows it cannot be done for.

    Raises RayvecError when all of many rows fail: then the rows are not to blame.
    """
    outcome: Outcome[T] = Outcome()
    if attempts.careful:
        _one_by_one(work, count, attempts, outcome)
    elif count:
        _halving(work, np.arange(count), outcome)
    if count >= SYSTEMIC and len(outcome.details) == count:
        row, detail = next(iter(outcome.details.items()))
        raise RayvecError(f"every one of {count} records fails, the first with {outcome.failures[row]}: {detail}")
    return outcome


def _one_by_one(work: Callable[[Rows], T], count: int, attempts: Attempts, outcome: Outcome[T]) -> None:
    for row in range(count):
        if attempts.given_up(row):
            outcome.failures[row] = WORKER_CRASH
            continue
        attempts.enter(row)
        _halving(work, np.array([row]), outcome)
    attempts.enter(None)


def _halving(work: Callable[[Rows], T], rows: Rows, outcome: Outcome[T]) -> None:
    try:
        outcome.pieces.append((rows, work(rows)))
    except RayvecError:
        raise
    except (Exception, SystemExit) as error:
        if _is_broken(error):
            detail = " ".join(str(error).split())[:200]
            raise RayvecError(f"a worker's GPU failed ({detail}); run the same command again to go on") from error
        if len(rows) == 1:
            outcome.failures[int(rows[0])] = type(error).__name__
            outcome.details[int(rows[0])] = " ".join(str(error).split())[:200]
            return
        middle = len(rows) // 2
        _halving(work, rows[:middle], outcome)
        _halving(work, rows[middle:], outcome)


def _is_broken(error: BaseException) -> bool:
    """Whether the process can use its GPU no more (torch's AcceleratorError): all that is tried then fails."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return "AcceleratorError" in kinds and "out of memory" not in str(error)
