"""HashEncoder: deterministic vectors from hashed words, without weights. Stands wherever a TextEncoder goes.

A text is a bag of words: each word adds ±1 at a few hashed positions, frequent English words add little, and the sum is
normalised; texts that share words get similar vectors, so a search over them means something. Knows numpy. Knows no
torch, no tokenizer library.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rayvec.errors import UserError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.tokens import TokenBatch, require_several
from rayvec.modeling.windows import Whole, Windowing, Windows, cut

BEGIN = 0  # the id of the token before every text, so that an empty text has one too
POSITIONS = 4  # positions that one word touches: two words rarely share all of them
COMMON_WEIGHT = 0.1
COMMON_WORDS = """a an and are as at be by can do does for from has have how i if in into is it its no not of on or so
such that the their then there these this to was we were what when which who will with you"""
COMMON = tuple(COMMON_WORDS.split())
# Letters and digits; each Chinese or Japanese character is a word of its own, since no spaces part them.
WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_぀-ヿ㐀-鿿]+")
CACHE_LIMIT = 1 << 20


class _WordIds(dict[str, int]):
    """Word to id, filled as words appear: common words have the ids 1…, all others a hash above them."""

    def __init__(self) -> None:
        super().__init__({word: i for i, word in enumerate(COMMON, start=1)})

    def __missing__(self, word: str) -> int:
        first = len(COMMON) + 1
        value = first + zlib.crc32(word.encode("utf-8", "surrogatepass")) % (2**31 - 1 - first)
        if len(self) < CACHE_LIMIT:
            self[word] = value
        return value


class HashEncoder:
    """An Encoder without weights: `HashEncoder(dim=64)`, or "hash" and "hash:64" where a reference is asked for.

    >>> encoder = HashEncoder(dim=64)
    >>> a, b, c = encoder.encode(["sort a list in place", "sorts the list", "open a network socket"])
    >>> bool(a @ b > a @ c)
    True
    """

    #: Words are hashed to all the ids that there are.
    vocab_size = 2**31

    def __init__(self, dim: int = 64, max_length: int = 512) -> None:
        if dim < 8 or max_length < 2:
            raise UserError(f"HashEncoder needs dim ≥ 8 and max_length ≥ 2, got {dim} and {max_length}")
        self.dim = dim
        self.max_length = max_length
        self._ids = _WordIds()

    @classmethod
    def parse(cls, reference: str) -> HashEncoder:
        """From "hash" or "hash:DIM". Raises UserError for anything else."""
        name, _, dim = reference.partition(":")
        if name != "hash" or not (dim.isdigit() or reference == "hash"):
            raise UserError(f"{reference!r} names no HashEncoder; write hash or hash:64")
        return cls(int(dim)) if dim else cls()

    @property
    def fingerprint(self) -> Fingerprint:
        """What makes the vectors: the algorithm's version and the numbers it takes."""
        return Fingerprint(
            weights=f"rayvec.hash/1:{self.dim}",
            tokenizer="rayvec.words/1",
            attention="none",
            pooling="sum",
            prompts="none",
            max_length=self.max_length,
            normalize=True,
            dim=self.dim,
        )

    @property
    def instructions(self) -> Mapping[str, str]:
        """None: an instruction would change nothing."""
        return {}

    def reading(self, max_length: int) -> HashEncoder:
        """The same encoder, reading so many words of a text."""
        return HashEncoder(self.dim, max_length)

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """Hashed words; the instruction's come first and are not pooled. Cut to `max_length` at the text's end."""
        require_several(texts)
        prefix = [BEGIN, *self._words(instruction or "")]
        room = self.max_length - len(prefix)
        if room < 1:
            raise UserError(
                f"the instruction takes {len(prefix)} of {self.max_length} tokens and leaves none for the text; "
                "shorten it"
            )
        words = [self._words(text) for text in texts]
        rows = [[*prefix, *ids[:room]] for ids in words]
        spans = [(len(prefix) if len(row) > len(prefix) else 0, len(row)) for row in rows]
        return TokenBatch.from_rows(rows, spans, [len(ids) > room for ids in words])

    def cut(
        self, texts: Sequence[str], windowing: Windowing, instruction: str | None = None
    ) -> tuple[TokenBatch, Windows]:
        """The passes over these texts and the windows in them. Raises UserError when a window is over `max_length`."""
        prefix = [BEGIN, *self._words(instruction or "")]
        wholes = []
        for text in texts:
            found = [(self._ids[word[0]], word.span()) for word in WORD.finditer(text.lower())]
            offsets = _of_original(text, [span for _, span in found])
            wholes.append(Whole(prefix, [id_ for id_, _ in found], [], offsets, len(text)))
        return cut(wholes, windowing, self.max_length)

    def _words(self, text: str) -> list[int]:
        ids = self._ids
        return [ids[word] for word in WORD.findall(text.lower())]

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        """Vectors float32 [n, dim] of length 1; the same to the bit whatever else is in the batch."""
        result = np.empty((len(batch), self.dim), np.float32)
        for start, stop in _chunks(batch.offsets, tokens=1 << 20):
            result[start:stop] = self._vectors(batch.select(slice(start, stop)))
        return result

    def encode_windows(self, batch: TokenBatch, windows: Windows) -> np.ndarray:
        """Vectors float32 [W, dim] of the windows. A hashed word knows no context: late chunks get windows' vectors."""
        ids = [batch.row(row)[a:b] for row, a, b in zip(windows.row, windows.start, windows.end, strict=True)]
        return self.encode_tokens(TokenBatch.from_rows(ids))

    def places(self, lengths: np.ndarray) -> int:
        """Words that are hashed for rows of these lengths: no more than they have."""
        return int(lengths.sum())

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Tokenize, then encode: float32 [n, dim]; [dim] of one text that is no list."""
        if isinstance(texts, str):
            return self.encode([texts], instruction)[0]
        return self.encode_tokens(self.tokenize(texts, instruction))

    def _vectors(self, batch: TokenBatch) -> np.ndarray:
        n, dim = len(batch), self.dim
        lengths = batch.lengths
        row_of_token = np.repeat(np.arange(n), lengths)
        place = np.arange(len(batch.input_ids)) - np.repeat(batch.offsets[:-1], lengths)
        pooled = (place >= batch.pool_start[row_of_token]) & (place < batch.pool_end[row_of_token])
        ids, rows = batch.input_ids[pooled].astype(np.uint64), row_of_token[pooled]
        weights = np.where(ids <= len(COMMON), COMMON_WEIGHT, 1.0)
        sums = np.zeros(n * dim)
        for k in range(POSITIONS):
            mixed = _mix(ids * np.uint64(POSITIONS) + np.uint64(k))
            position = (mixed >> np.uint64(1)) % np.uint64(dim)
            sign = 1.0 - 2.0 * (mixed & np.uint64(1))
            sums += np.bincount(rows * dim + position.astype(np.int64), sign * weights, minlength=n * dim)
        vectors = sums.reshape(n, dim)
        # Signs that cancel out entirely would leave nothing to normalise; the first position then stands in.
        vectors[~vectors.any(axis=1), 0] = 1.0
        return (vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))).astype(np.float32)


def _of_original(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of the lower-case text as spans of the text: a few letters, as İ, are two in lower case."""
    widths = [len(letter.lower()) for letter in text]
    if sum(widths) == len(text):
        return spans
    origin = np.repeat(np.arange(len(text)), widths)
    return [(int(origin[start]), int(origin[end - 1]) + 1) for start, end in spans]


def _mix(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: well-spread 64-bit hashes of uint64 values (wraps around on purpose)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _chunks(offsets: np.ndarray, tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about so many tokens each, so that memory stays bounded whatever the batch."""
    start, n = 0, len(offsets) - 1
    while start < n:
        stop = int(np.searchsorted(offsets, offsets[start] + tokens, side="right")) - 1
        stop = min(max(stop, start + 1), n, start + (1 << 16))
        yield start, stop
        start = stop
