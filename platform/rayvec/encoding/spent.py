"""What work on units took: the seconds of each of its steps, and the padding among what the encoder computed.

Told to a person and never stored with the result, which must be the same however long it took. Knows nothing of the
work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Step = Literal["read", "tokenize", "encode", "write"]
STEPS: tuple[Step, ...] = ("read", "tokenize", "encode", "write")


@dataclass
class Spent:
    """Seconds of the steps, summed over workers; tokens given to the encoder, and the places it computed for them."""

    read: float = 0.0
    tokenize: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    tokens: int = 0
    #: Tokens and padding.
    places: int = 0

    @contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Count the time that the block takes to a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, step, getattr(self, step) + time.perf_counter() - started)

    def add(self, other: Spent) -> None:
        """Count what other work took as well."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def shares(self) -> dict[str, float]:
        """The share of each step in the time that workers were busy; empty when they never were.

        >>> Spent(read=1, tokenize=1, encode=7, write=1).shares
        {'read': 0.1, 'tokenize': 0.1, 'encode': 0.7, 'write': 0.1}
        """
        seconds = {step: getattr(self, step) for step in STEPS}
        total = sum(seconds.values())
        return {step: round(value / total, 4) for step, value in seconds.items()} if total else {}

    @property
    def padding(self) -> float:
        """The share of padding in what was computed.

        >>> Spent(tokens=90, places=100).padding
        0.1
        """
        return round(1 - self.tokens / self.places, 4) if self.places else 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)
