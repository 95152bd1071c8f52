"""Text to terms, for lexical search over prose and code alike: words, identifiers whole, and the parts of identifiers.

Of scripts that put no spaces between words the terms are pairs of characters. Knows characters. Knows no index.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise

#: A run of word characters, with dots inside it: `join`, `snake_case`, `os.path.join`, `HTTPResponse`, `3.11`.
RUN = re.compile(r"\w+(?:\.\w+)*")
#: The words inside an identifier: `HTTPResponse` → HTTP, Response; `float16` stays one. Names beyond ASCII stay whole.
PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*|[0-9]+")

_HAN = "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u9fff\uf900-\ufad9\U00020000-\U000323af"
_KANA_AND_HANGUL = "\u3031-\u3035\u3041-\u30ff\u31f0-\u31ff\uac00-\ud7a3\U0001b000-\U0001b16f"
_THAI_LAO_MYANMAR_KHMER = "\u0e01-\u0edf\u1000-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f\u1780-\u17df"
#: Runs of scripts whose words are not parted by spaces, or, as Korean's, carry what is searched without. Their terms
#: are pairs of neighbouring characters, as Lucene's CJK analyser makes them; and Han characters alone, many of which
#: are words.
SPACELESS = re.compile(f"([{_HAN}{_KANA_AND_HANGUL}{_THAI_LAO_MYANMAR_KHMER}]+)")
HAN = re.compile(f"[{_HAN}]")

#: Snowball stems raise nDCG@10 of BM25 on all of SciFact (0.667 to 0.680), Cranfield (0.348 to 0.364), CACM (0.385 to
#: 0.463) and ADI (0.421 to 0.479); parts of identifiers cost nothing there that can be told from chance.
STEMMER = "english"
#: The stemmers of English, with which English's stop words are left out.
ENGLISH = ("english", "porter", "lovins")

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
    >>> Terms()("Pythonの辞書")
    ['python', '辞', '書', 'の辞', '辞書']
    """

    def __init__(self, stemmer: str | None = STEMMER) -> None:
        self.stemmer = stemmer
        self._stopwords = STOPWORDS if stemmer in (None, *ENGLISH) else frozenset[str]()
        self._stem = _stemmer(stemmer)
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in order; a word that occurs twice is there twice."""
        runs: Iterable[str] = RUN.findall(text) if text.isascii() else _runs(unicodedata.normalize("NFKC", text))
        terms: list[str] = []
        for run in runs:
            if SPACELESS.match(run):
                terms.extend(_pairs(run))
                continue
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


def _runs(text: str) -> Iterator[str]:
    """The runs of a text beyond ASCII, parted where a script without spaces begins or ends."""
    for run in _marked_run().findall(text):
        yield from (piece.strip(".") for piece in SPACELESS.split(run) if piece.strip("."))


@cache
def _marked_run() -> re.Pattern[str]:
    r"""As RUN, with the marks that stand on letters, such as the vowels of Thai and Hindi; `\w` has none of them."""
    marks = "".join(chr(point) for point in range(0x20000) if unicodedata.category(chr(point)) in ("Mn", "Mc"))
    return re.compile(rf"[\w{marks}]+(?:\.[\w{marks}]+)*")


def _pairs(run: str) -> list[str]:
    if len(run) == 1:
        return [run]
    return [*HAN.findall(run), *(first + second for first, second in pairwise(run))]


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
