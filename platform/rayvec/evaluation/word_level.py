"""The word-level probe: how much of chunks, entities or parts of speech a frozen encoder's token states tell.

LLM2Vec, section 3 (arXiv 2404.05961): the encoder is frozen, a word's vector is the mean of its sub-words' states, and
dropout with one linear layer is trained on it. Models trained by masked next token prediction hold token i in the state
at i - 1, so there every sub-word is read one place earlier (`position="previous"`).

Knows an encoder's token states and tagged sentences. Knows no file. Shapes: W words, S sentences, T tokens, D hidden,
L tags.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.evaluation.tagged_files import Sentence
from rayvec.modeling.prompts import text_tokens

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder
    from rayvec.modeling.text_tokenizer import TextTokenizer
    from rayvec.modeling.tokens import TokenBatch

#: Where a sub-word is read: at its own place, or one before it.
Position = Literal["word", "previous"]

# Sentences whose token states are held at once; of the words, the vectors of all stay in memory.
_SENTENCES = 512


class ProbeSettings(Config):
    """How the probe is trained; the defaults are the paper's. AdamW without weight decay, at a constant rate."""

    steps: PositiveInt = 1500
    learning_rate: PositiveFloat = 5e-4
    #: Sentences a step.
    batch_size: PositiveInt = 8
    dropout: float = Field(0.1, ge=0, lt=1)
    seed: int = 0


@dataclass(frozen=True)
class WordVectors:
    """W words of S sentences with their vectors; words without one are left out, and counted."""

    vectors_WD: npt.NDArray[np.float32]
    words: list[str]
    tags: list[str]
    #: Sentence s is words [offsets[s], offsets[s + 1]); every sentence has at least one.
    offsets: npt.NDArray[np.int64]
    #: Words that `max_length` cut off, in part or whole.
    cut: int
    #: Words that the tokenizer makes no token of (control characters and their like).
    without_tokens: int


def default_position(encoder: TextEncoder) -> Position:
    """As in the reference: "previous" for an encoder with MNTP among its stages (SimCSE after it or not)."""
    stages = {adapter.stage for adapter in encoder.folder.manifest.adapters}
    return "previous" if "mntp" in stages else "word"


def word_vectors(encoder: TextEncoder, sentences: Sequence[Sentence], position: Position) -> WordVectors:
    """The vector of each word of sentences that are read as texts, words joined by spaces.

    Each token is computed once. Raises UserError when no word has a vector.
    """
    groups = [sentences[start : start + _SENTENCES] for start in range(0, len(sentences), _SENTENCES)]
    found = [_vectors_of(encoder, group, int(position == "previous")) for group in groups]
    if not any(some.words for some in found):
        raise UserError("no word of the sentences has a whole token; raise the encoder's max_length")
    counts = np.concatenate([np.diff(some.offsets) for some in found])
    return WordVectors(
        np.concatenate([some.vectors_WD for some in found if some.words]),
        words=[word for some in found for word in some.words],
        tags=[tag for some in found for tag in some.tags],
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        cut=sum(some.cut for some in found),
        without_tokens=sum(some.without_tokens for some in found),
    )


def _vectors_of(encoder: TextEncoder, sentences: Sequence[Sentence], back: int) -> WordVectors:
    """The same for as many sentences as are read at once; there may be no words."""
    batch = encoder.tokenize([" ".join(sentence.words) for sentence in sentences])
    alignments = list(align(encoder.folder.tokenizer, sentences, batch))
    whole = [[first < stop <= a.kept for first, stop in a.ranges] for a in alignments]
    # The row's first token in the batch, and the word's tokens in the row.
    ranges_W3 = np.array(
        [
            (begin, *tokens)
            for begin, a, kept in zip(batch.offsets[:-1], alignments, whole, strict=True)
            for tokens in compress(a.ranges, kept)
        ],
        dtype=np.int64,
    ).reshape(-1, 3)
    return WordVectors(
        _means(encoder.token_states(batch), ranges_W3, back),
        words=[word for s, kept in zip(sentences, whole, strict=True) for word in compress(s.words, kept)],
        tags=[tag for s, kept in zip(sentences, whole, strict=True) for tag in compress(s.tags, kept)],
        offsets=np.concatenate([[0], np.cumsum([n for n in map(sum, whole) if n])]).astype(np.int64),
        cut=sum(a.kept < stop for a in alignments for first, stop in a.ranges if first < stop),
        without_tokens=sum(first == stop for a in alignments for first, stop in a.ranges),
    )


@dataclass(frozen=True)
class Alignment:
    """The tokens of each word of a sentence, [first, stop) in the row as it is before it is cut (equal: none)."""

    ranges: list[tuple[int, int]]
    #: Tokens at the beginning of the row that survive the cut.
    kept: int


def align(tokenizer: TextTokenizer, sentences: Sequence[Sentence], batch: TokenBatch) -> Iterator[Alignment]:
    """Where the words of each sentence lie in its row of `batch`, by the fast tokenizer's offsets.

    A token that holds letters of two words is both words'; one of nothing but a space is no word's.
    """
    before, after = tokenizer.prompts.surroundings()
    read = tokenizer.tokenizer(
        [before + " ".join(sentence.words) + after for sentence in sentences],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    for row, sentence in enumerate(sentences):
        offsets, special = read["offset_mapping"][row], read["special_tokens_mask"][row]
        ranges = []
        start = len(before)
        for word in sentence.words:
            ranges.append(text_tokens(offsets, special, start, start + len(word)))
            start += len(word) + 1
        yield Alignment(ranges, _common(read["input_ids"][row], batch.row(row)))


def _common(whole: list[int], row: npt.NDArray[np.int32]) -> int:
    """How many ids at the beginning are the same: those of the text before it was cut."""
    length = min(len(whole), len(row))
    differing = np.flatnonzero(np.asarray(whole[:length]) != row[:length])
    return int(differing[0]) if len(differing) else length


def _means(states_TD: npt.NDArray[np.float32], ranges_W3: npt.NDArray[np.int64], back: int) -> npt.NDArray[np.float32]:
    """The mean state of each word's tokens, each read `back` places earlier; a row's first token at its own place."""
    row_W, first_W, stop_W = ranges_W3.T
    if not len(ranges_W3):
        return states_TD[:0]
    counts_W = stop_W - first_W
    begins_W = np.cumsum(counts_W) - counts_W
    place = np.arange(counts_W.sum()) + np.repeat(first_W - begins_W, counts_W)
    tokens = np.repeat(row_W, counts_W) + np.maximum(place - back, 0)
    means: npt.NDArray[np.float32] = np.add.reduceat(states_TD[tokens], begins_W, axis=0)
    return means / counts_W[:, None].astype(np.float32)


@dataclass(frozen=True)
class Probe:
    """A trained linear layer: the tag of a word is that of its highest score."""

    tags: list[str]
    weight_LD: npt.NDArray[np.float32]
    bias_L: npt.NDArray[np.float32]

    def predict(self, vectors_WD: npt.NDArray[np.float32]) -> list[str]:
        """The tag of each word."""
        best_W = np.argmax(vectors_WD @ self.weight_LD.T + self.bias_L, axis=1)
        return [self.tags[best] for best in best_W]


def train_probe(train: WordVectors, settings: ProbeSettings) -> Probe:
    """Train dropout and a linear layer by the words' cross-entropy, on the CPU, the sentences in a seeded order."""
    import torch
    from torch import nn

    tags = sorted(set(train.tags))
    place = {tag: i for i, tag in enumerate(tags)}
    labels_W = torch.tensor([place[tag] for tag in train.tags])
    vectors_WD = torch.from_numpy(train.vectors_WD)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        linear = nn.Linear(vectors_WD.shape[1], len(tags))
        probe = nn.Sequential(nn.Dropout(settings.dropout), linear)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        for sentences in _batches(len(train.offsets) - 1, settings):
            words = torch.from_numpy(
                np.concatenate([np.arange(train.offsets[s], train.offsets[s + 1]) for s in sentences])
            )
            optimizer.zero_grad()
            nn.functional.cross_entropy(probe(vectors_WD[words]), labels_W[words]).backward()
            optimizer.step()
    return Probe(tags, linear.weight.detach().numpy(), linear.bias.detach().numpy())


def _batches(sentences: int, settings: ProbeSettings) -> Iterator[npt.NDArray[np.int64]]:
    """The sentences of each step; every sentence is seen before one is seen again."""
    rng = np.random.default_rng(settings.seed)
    size = settings.batch_size
    waiting = np.zeros(0, np.int64)
    for _ in range(settings.steps):
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(sentences)])
        yield waiting[:size]
        waiting = waiting[size:]


def majority(train: WordVectors, words: Sequence[str]) -> list[str]:
    """The most frequent tag of each word in training; of an unknown word, the most frequent of all."""
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in zip(train.words, train.tags, strict=True):
        by_word[word][tag] += 1
    best = {word: found.most_common(1)[0][0] for word, found in by_word.items()}
    usual = Counter(train.tags).most_common(1)[0][0]
    return [best.get(word, usual) for word in words]
