"""Lexical search over segments: the scores that one BM25 over all live texts would give.

A segment's files hold scores with its own inverse document frequencies, as it was built. A query's terms are weighted
anew: texts and holders of a term are counted over the live rows of all segments, so that deletes and updates count at
once, and every score is multiplied by idf(all) / idf(segment). What stays as it was is the mean length of a text, which
a delta takes from the base: if the live texts are longer or shorter by a factor f on average, no score is off by more
than f, and that only for terms weighed by length; a compaction sets it right. `drift` gives f - 1.

Knows segments and rows. Knows no vectors and no documents.

Shapes: Q queries, K results a query, N rows of a segment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayvec.indexing.lexical import Lexical, best_rows, idf
from rayvec.indexing.ranking import NO_ROW, NO_SCORE, Ranking, Rows, check_k

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """The texts of one segment: where its rows start, which are dropped (None: none is), and their BM25.

    lexical is None where no text holds a word.
    """

    start: int
    rows: int
    lexical: Lexical | None
    dead_N: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, start: int, rows: int, lexical: Lexical | None, dropped: Rows | None) -> Texts:
        """dropped: rows counted from the segment's own first."""
        if dropped is None:
            return cls(start, rows, lexical)
        dead = np.zeros(rows, np.bool_)
        dead[dropped] = True
        return cls(start, rows, lexical, dead)

    def holding(self, term: str) -> int:
        """How many of the live texts hold a term."""
        rows, _ = self._postings(term)
        return len(rows) - (0 if self.dead_N is None else int(np.count_nonzero(self.dead_N[rows])))

    def _postings(self, term: str) -> tuple[npt.NDArray[np.int32], Scores]:
        if self.lexical is None:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return self.lexical.postings(term)

    def scores(self, weights: Mapping[str, int], live: int, holding: Mapping[str, int]) -> Scores:
        """The score of each row [N], 0 for dropped ones.

        weights: how often each term is asked for; live, holding: texts of all segments, and how many hold the term.
        """
        scores = np.zeros(self.rows, np.float32)
        for term, weight in weights.items():
            rows, values = self._postings(term)
            if len(rows):
                scores[rows] += values * np.float32(weight * idf(live, holding[term]) / idf(self.rows, len(rows)))
        if self.dead_N is not None:
            scores[self.dead_N] = 0
        return scores


class LexicalSegments:
    """BM25 over the live rows of several segments."""

    def __init__(self, segments: Sequence[Texts], live: int) -> None:
        self._segments = segments
        self._live = live
        self._first = next(segment.lexical for segment in segments if segment.lexical is not None)

    def search(self, queries: Sequence[str], k: int, allowed_N: npt.NDArray[np.bool_] | None = None) -> Ranking:
        """The live texts that share a term with each query, best first. Raises UserError when k is below 1.

        allowed_N: the rows of all segments that may be found; all live ones by default.
        """
        k = check_k(k, self._live)
        if len(self._segments) == 1 and self._segments[0].dead_N is None and allowed_N is None:
            return self._first.search(queries, k)
        rows = np.full((len(queries), k), NO_ROW, dtype=np.int64)
        scores = np.full((len(queries), k), NO_SCORE, dtype=np.float32)
        for place, query in enumerate(queries):
            every_N = self._scores(query)
            found, values = best_rows(every_N if allowed_N is None else np.where(allowed_N, every_N, 0), k)
            rows[place, : len(found)] = found
            scores[place, : len(found)] = values
        return Ranking(rows, scores)

    def _scores(self, query: str) -> Scores:
        weights = Counter(self._first.terms(query))
        holding = {term: sum(segment.holding(term) for segment in self._segments) for term in weights}
        return np.concatenate([segment.scores(weights, self._live, holding) for segment in self._segments])

    def drift(self) -> float:
        """By how much, at most, a score differs from that of a fresh build, as a share of it: 0.02 is 2 %."""
        live = [
            segment.lexical.lengths_N if segment.dead_N is None else segment.lexical.lengths_N[~segment.dead_N]
            for segment in self._segments
            if segment.lexical is not None
        ]
        mean = sum(int(lengths.sum(dtype=np.int64)) for lengths in live) / self._live
        return max(mean / self._first.average, self._first.average / mean) - 1 if mean else 0.0
