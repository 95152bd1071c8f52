"""The prefix test: does a shared beginning already know how its text goes on?

LLM2Vec, section 4.2: of three texts that begin alike, two go on in the same sense and one in another. Only the tokens
of the beginning are pooled. A causal model gives all three the same vector; one that has learned to attend both ways
puts the two nearer to each other than to the third.

Knows an encoder and triples of texts. Shapes: N triples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rayvec import assets
from rayvec.errors import UserError
from rayvec.evaluation.local_sets import read_records
from rayvec.evaluation.statistics import Comparison, Estimate, Values, compare, estimate

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder


class Triple(NamedTuple):
    """A beginning, and three ways in which it goes on: two in one sense, the last in another."""

    prefix: str
    text: str
    same: str
    other: str


@dataclass(frozen=True)
class PrefixResult:
    """Cosines of the beginning's vector in `text` to that in `same` and in `other`, a value a triple."""

    same_N: Values
    other_N: Values

    @property
    def wins(self) -> Estimate:
        """The share of triples in which `same` is nearer; one half where both are equally near."""
        return estimate(np.where(self._equal_N, 0.5, (self.same_N > self.other_N).astype(np.float64)))

    @property
    def gap(self) -> Comparison:
        """How much nearer `same` is in the mean."""
        return compare(np.where(self._equal_N, self.other_N, self.same_N), self.other_N)

    @property
    def _equal_N(self) -> npt.NDArray[np.bool_]:
        """Where the two differ by no more than rounding."""
        return np.abs(self.same_N - self.other_N) < 1e-6


def read_triples(uri: str = "") -> list[Triple]:
    """Triples from jsonl of prefix, text, same and other; by default those that rayvec brings. Raises UserError."""
    records = read_records(uri or str(assets.path("prefix-triples") / "triples.jsonl"))
    for number, record in enumerate(records, 1):
        if not all(isinstance(record.get(name), str) and record[name].strip() for name in Triple._fields):
            raise UserError(f"{uri}, record {number}: needs {', '.join(Triple._fields)}, each a text")
    return [Triple(*(record[name].strip() for name in Triple._fields)) for record in records]


def prefix_test(encoder: TextEncoder, triples: Sequence[Triple]) -> PrefixResult:
    """Encode each text of each triple, pool the beginning's tokens alone, and compare.

    Raises UserError when the encoder reads texts inside a template, or cuts the beginning off.
    """
    vectors = [_beginnings(encoder, triples, name) for name in ("text", "same", "other")]
    same_N, other_N = (np.sum(vectors[0] * found, axis=1).astype(np.float64) for found in vectors[1:])
    return PrefixResult(same_N, other_N)


def _beginnings(encoder: TextEncoder, triples: Sequence[Triple], name: str) -> npt.NDArray[np.float32]:
    """Vectors of length 1 of the beginnings, float32 [N, D]."""
    if encoder.folder.manifest.prompts.template != "none":
        raise UserError("the prefix test reads texts without a template; give an encoder whose template is none")
    batch = encoder.tokenize([f"{triple.prefix} {getattr(triple, name)}" for triple in triples])
    alone = encoder.tokenize([triple.prefix for triple in triples])
    lengths = alone.pool_end - alone.pool_start
    # Only tokens that are the same in all three texts: a last one that melts into what follows is left out.
    for row in range(len(triples)):
        start, most = int(batch.pool_start[row]), int(lengths[row])
        own, whole = alone.row(row)[alone.pool_start[row] :][:most], batch.row(row)[start:][:most]
        differing = np.flatnonzero(own[: len(whole)] != whole)
        lengths[row] = int(differing[0]) if len(differing) else len(whole)
        if lengths[row] < 1:
            raise UserError(f"{triples[row].prefix!r} has no whole token of its own; write a longer beginning")
    batch.pool_end[:] = batch.pool_start + lengths
    vectors_ND = encoder.encode_tokens(batch)
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(norms, 1e-12), np.float32)
