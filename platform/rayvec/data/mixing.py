"""Which examples make up the global batch of a step: a pure function of (seed, step), so a resumed run sees the same.

Every global batch comes from one set, so that in-batch negatives are of one kind (LLM2Vec, section 4.1). Knows sizes,
weights and lengths. Knows no texts, no tokenizer, no ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rayvec.errors import UserError


@dataclass(frozen=True)
class ExampleSet:
    """Examples [start, stop) of a store, drawn `weight` times as often as their number alone would have it."""

    name: str
    start: int
    stop: int
    weight: float = 1.0

    def __len__(self) -> int:
        return self.stop - self.start


def _generator(*keys: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))


@dataclass
class FixedSizeBatches:
    """`batch_size` examples a step, all of one set; a set is gone through in a new random order each time round.

    What does not fill a batch at the end of a round waits for the next one.
    """

    sets: Sequence[ExampleSet]
    batch_size: int
    seed: int
    _choices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), init=False, repr=False)
    _orders: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for examples in self.sets:
            if len(examples) < self.batch_size:
                raise UserError(
                    f"set {examples.name} has {len(examples)} examples, fewer than batch_size {self.batch_size}; "
                    "lower batch_size or leave the set out"
                )

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step, int64 [batch_size]."""
        chosen = self.set_of(step)
        round_, place = divmod(int((self._choices[:step] == chosen).sum()), len(self.sets[chosen]) // self.batch_size)
        order = self._order(chosen, round_)
        return self.sets[chosen].start + order[place * self.batch_size : (place + 1) * self.batch_size]

    def set_of(self, step: int) -> int:
        """Which set the batch of a step comes from."""
        if step >= len(self._choices):
            weights = np.array([len(examples) * examples.weight for examples in self.sets], float)
            # The first n draws of a seed are the same however many are drawn.
            self._choices = _generator(self.seed, 0).choice(
                len(self.sets), size=max(1024, 2 * step), p=weights / weights.sum()
            )
        return int(self._choices[step])

    def _order(self, chosen: int, round_: int) -> np.ndarray:
        if self._orders.get(chosen, (-1,))[0] != round_:
            order = _generator(self.seed, 1, chosen, round_).permutation(len(self.sets[chosen]))
            self._orders[chosen] = (round_, order)
        return self._orders[chosen][1]


@dataclass
class TokenBudgetBatches:
    """Examples of about `tokens` tokens in all a step; each example comes once a round, in a new random order.

    What is left over of a round is spread over all its steps: as a batch of its own it could be too few texts for all
    workers, and put to the last one it would nearly double it, and its memory.
    """

    lengths: np.ndarray
    tokens: int
    seed: int
    _round: tuple[int, np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            raise UserError("there is no text to train on; check the source's path and min_characters")

    def __call__(self, step: int) -> np.ndarray:
        """The examples of a step, int64 [n]: those whose first token lies in the step's window of the round."""
        total = int(self.lengths.sum())
        windows = max(1, total // self.tokens)
        round_, window = divmod(step, windows)
        order, starts = self._order(round_)
        low, high = np.searchsorted(starts, [total * window // windows, total * (window + 1) // windows])
        return order[low:high]

    def _order(self, round_: int) -> tuple[np.ndarray, np.ndarray]:
        if self._round is None or self._round[0] != round_:
            order = _generator(self.seed, 2, round_).permutation(len(self.lengths))
            lengths = self.lengths[order]
            self._round = (round_, order, np.cumsum(lengths) - lengths)
        return self._round[1:]
