"""Text to terms, for lexical search over prose and code alike: words, identifiers whole, and the parts of identifiers.

Knows characters. Knows no index.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

#: A run of word characters, with dots inside it: `join`, `snake_case`, `os.path.join`, `HTTPResponse`, `3.11`.
RUN = re.compile(r"\w+(?:\.\w+)*")
#: The words inside an identifier: `HTTPResponse` → HTTP, Response; `float16` stays one. Names beyond ASCII stay whole.
PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*|[0-9]+")

#: Snowball stems raise nDCG@10 of BM25 on all of SciFact (0.667 to 0.680), Cranfield (0.348 to 0.364), CACM (0.385 to
#: 0.463) and ADI (0.421 to 0.479); parts of identifiers cost nothing there that can be told from chance.
STEMMER = "english"

#: The words that Lucene's English analyser leaves out: they are in most texts and tell them apart least.
# fmt: off
STOPWORDS = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will",
    "with",
])
# fmt: on

#: Runs that a process remembers: no corpus of prose has more, and no stream of odd queries may fill the memory.
CACHE_LIMIT = 1 << 20

Stem = Callable[[str], str]


class Terms:
    """Splits texts into terms; one per process, it remembers the runs that it has seen.

    stemmer: a Snowball language ("english") for the stems of plain words and of parts; None takes them as they are.

    >>> Terms(stemmer=None)("os.path.join(a_dir)")
    ['os.path.join', 'os', 'path', 'join', 'a_dir', 'dir']
    >>> Terms(stemmer=None)("The HTTPResponse")
    ['httpresponse', 'http', 'response']
    """

    def __init__(self, stemmer: str | None = STEMMER, stopwords: frozenset[str] = STOPWORDS) -> None:
        self.stemmer = stemmer
        self._stopwords = stopwords
        self._stem = _stemmer(stemmer)
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in order; a word that occurs twice is there twice."""
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        terms: list[str] = []
        for run in RUN.findall(text):
            known = self._known.get(run)
            if known is None:
                known = self._split(run)
                if len(self._known) < CACHE_LIMIT:
                    self._known[run] = known
            terms.extend(known)
        return terms

    def _split(self, run: str) -> tuple[str, ...]:
        """Of one run: the whole of it, the names between its dots, and the words inside those, each once."""
        whole = run.lower()
        names = run.split(".")
        words = [word.lower() for name in names for word in _parts(name)]
        if [whole] == words:
            return self._words(words)
        names_kept = [name.lower() for name in names if len(names) > 1 and "_" in name.strip("_")]
        return tuple(dict.fromkeys([whole, *names_kept, *self._words(words)]))

    def _words(self, words: Sequence[str]) -> tuple[str, ...]:
        return tuple(self._stem(word) for word in words if word not in self._stopwords)


def _parts(name: str) -> list[str]:
    """The words inside one name without dots; beyond ASCII only underscores part them."""
    return PART.findall(name) if name.isascii() else [part for part in name.split("_") if part]


def _stemmer(language: str | None) -> Stem:
    if language is None:
        return _same
    import Stemmer

    return partial(_first_stem, Stemmer.Stemmer(language))


def _first_stem(stemmer: object, word: str) -> str:
    stem: str = stemmer.stemWord(word)  # type: ignore[attr-defined]
    return stem


def _same(word: str) -> str:
    return word
