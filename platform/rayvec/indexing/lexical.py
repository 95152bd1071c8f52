"""Lexical search: BM25 (by bm25s) over terms of our own. Built from texts, saved as plain arrays, read memory-mapped.

Knows texts and rows. Knows no vectors, no documents table, no Ray. No pickle: bm25s writes .npy arrays and JSON.

Shapes: Q queries, K results a query, N texts.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec import storage
from rayvec.errors import UserError, VerificationError
from rayvec.failures import storage_errors
from rayvec.indexing.ranking import NO_ROW, NO_SCORE, Ranking, Rows, Scores, check_k
from rayvec.indexing.terms import STEMMER, Terms

ANALYZER = "analyzer.json"
LENGTHS = "lengths.npy"
FORMAT = "rayvec.lexical/3"
#: Anserini's defaults for BM25, tuned on passage and news collections.
K1, B = 0.9, 0.4


@dataclass(frozen=True)
class Bag:
    """The terms of some texts as numbers: ids int32 [all terms of all texts], lengths int32 [texts], and the words."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    words: tuple[str, ...]
    stemmer: str | None

    def rows(self, vocabulary: dict[str, int]) -> Iterator[list[int]]:
        """Each text's terms by their number in a vocabulary, which grows by the words that it does not have."""
        numbers = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in self.words], dtype=np.int64)
        ends = np.cumsum(self.lengths)
        for start, end in zip(ends - self.lengths, ends, strict=True):
            yield numbers[self.ids[start:end]].tolist()


def bag(texts: Iterable[str], stemmer: str | None = STEMMER) -> Bag:
    """Take the terms of texts. The costly part of building, and one that can be done in pieces, apart."""
    terms = Terms(stemmer)
    vocabulary: dict[str, int] = {}
    ids, lengths = array("i"), array("i")
    for text in texts:
        found = terms(text)
        ids.extend(vocabulary.setdefault(term, len(vocabulary)) for term in found)
        lengths.append(len(found))
    return Bag(np.array(ids, dtype=np.int32), np.array(lengths, dtype=np.int32), tuple(vocabulary), stemmer)


class Lexical:
    """BM25 over a list of texts.

    >>> lexical = Lexical.build(["os.path.join(a, *p): join path components", "list.sort(): sort in place"])
    >>> lexical.search(["path join"], k=2).rows.tolist()
    [[0, -1]]
    """

    def __init__(self, bm25: Any, terms: Terms, average: float, lengths_N: npt.NDArray[np.int32]) -> None:
        self._bm25 = bm25
        self.terms = terms
        #: Terms of a text as the scores are normalised by, and of each text.
        self.average = average
        self.lengths_N = lengths_N

    @property
    def count(self) -> int:
        """Number of texts."""
        return int(self._bm25.scores["num_docs"])

    @property
    def term_count(self) -> int:
        """Number of different terms."""
        return len(self._bm25.vocab_dict)

    @classmethod
    def build(cls, texts: Iterable[str], *, k1: float = K1, b: float = B, stemmer: str | None = STEMMER) -> Lexical:
        """Index the texts; row i is the i-th. Raises UserError when there are none, or none holds a word."""
        return cls.from_bags([bag(texts, stemmer)], k1=k1, b=b)

    @classmethod
    def from_bags(cls, bags: Sequence[Bag], *, k1: float = K1, b: float = B, average: float | None = None) -> Lexical:
        """Index texts whose terms were taken elsewhere, the bags one after the other.

        average: the length of a text that scores are normalised by; that of these texts by default.
        """
        bm25s = _bm25s()
        vocabulary: dict[str, int] = {}
        ids = [row for each in bags for row in each.rows(vocabulary)]
        if not ids:
            raise UserError("no texts to index; give at least one")
        if not vocabulary:
            raise UserError("none of the texts holds a word that lexical search could find; set lexical=false")
        lengths = np.concatenate([each.lengths for each in bags])
        own = float(lengths.mean())
        average = average or own
        # bm25s divides by the mean length of the texts that it is given: with this k1 and b, its k1 · (1 - b + b ·
        # length / own) is the k1 · (1 - b + b · length / average) that is meant.
        part = b * own / average
        bm25 = bm25s.BM25(
            k1=k1 * (1 - b + part), b=part / (1 - b + part), method="lucene", backend="numpy", csc_backend="scipy"
        )
        bm25.index((ids, vocabulary), show_progress=False)
        return cls(bm25, Terms(bags[0].stemmer), average, lengths)

    def search(self, queries: Sequence[str], k: int) -> Ranking:
        """The texts that share a term with each query, best first. Raises UserError when k is below 1."""
        k = check_k(k, self.count)
        rows = np.full((len(queries), k), NO_ROW, dtype=np.int64)
        scores = np.full((len(queries), k), NO_SCORE, dtype=np.float32)
        for place, query in enumerate(queries):
            found, values = self._one(query, k)
            rows[place, : len(found)] = found
            scores[place, : len(found)] = values
        return Ranking(rows, scores)

    def scores(self, query: str) -> Scores:
        """The score of every text, float32 [N]; 0 where it shares no term with the query."""
        found: Scores = self._bm25.get_scores_from_ids(self._bm25.get_tokens_ids(self.terms(query)))
        return found

    def _one(self, query: str, k: int) -> tuple[Rows, Scores]:
        return best_rows(self.scores(query), k)

    def postings(self, term: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The rows that hold a term, each once, and what one occurrence of it in a query adds to their scores."""
        number = self._bm25.vocab_dict.get(term)
        if number is None:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        scores = self._bm25.scores
        start, end = scores["indptr"][number : number + 2]
        return scores["indices"][start:end], scores["data"][start:end]

    def save(self, folder: Path) -> None:
        """Write the arrays, the vocabulary and the analyser's settings into a folder. Raises StorageError."""
        with storage_errors(folder):
            self._bm25.save(folder, show_progress=False, allow_pickle=False)
            np.save(folder / LENGTHS, self.lengths_N, allow_pickle=False)
        settings = {"format": FORMAT, "stemmer": self.terms.stemmer, "average": self.average}
        storage.write_json(folder / ANALYZER, settings)

    @classmethod
    def load(cls, folder: Path) -> Lexical:
        """Read what `save` wrote; the arrays are memory-mapped, so that processes share them."""
        bm25s = _bm25s()
        settings = _settings(folder)
        bm25 = bm25s.BM25.load(folder, mmap=True, allow_pickle=False, show_progress=False)
        lengths = np.load(folder / LENGTHS, mmap_mode="r", allow_pickle=False)
        return cls(bm25, Terms(settings["stemmer"]), float(settings["average"]), lengths)


def _bm25s() -> Any:
    """The library, which tells every step by default."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def average_length(folder: Path) -> float:
    """The length of a text, in terms, that a saved index normalises its scores by."""
    return float(_settings(folder)["average"])


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = storage.read_json(folder / ANALYZER)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no lexical index; build one") from None
    if settings.get("format") != FORMAT:
        raise VerificationError(f"{folder / ANALYZER} is not of {FORMAT}; build the index again with this rayvec")
    return settings


def best_rows(scores_N: Scores, k: int) -> tuple[Rows, Scores]:
    """The k best of the rows whose score is above 0, and their scores; of equal scores the smaller row goes first."""
    found = np.flatnonzero(scores_N > 0)
    if len(found) > k:
        # Keep all that tie with the k-th, so that the smaller rows of them win and not the luck of the partition.
        bound = np.partition(scores_N[found], len(found) - k)[len(found) - k]
        found = found[scores_N[found] >= bound]
    order = np.lexsort((found, -scores_N[found]))[:k]
    return found[order], scores_N[found[order]]


def idf(texts: int, holding: int) -> float:
    """Lucene's inverse document frequency of a term that so many of the texts hold."""
    return math.log(1 + (texts - holding + 0.5) / (holding + 0.5))
