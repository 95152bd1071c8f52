"""Long texts cut into windows by tokens: what is read in one pass, and which tokens each window pools.

Either each window is a pass of its own, or (late chunking: Günther et al. 2024, arXiv:2409.04701) one pass reads as
much as the encoder can, and each window is pooled from its own tokens, which have seen the others. The windows are the
same in both. A text's own tokens are those of the text alone, without what stands around it.
Knows token ids and character offsets. Knows no tokenizer, no model, no torch.

Legend: W windows, P passes, N texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from rayvec.errors import UserError
from rayvec.modeling.tokens import TokenBatch, concatenate

Span = tuple[int, int]


@dataclass(frozen=True)
class Windowing:
    """How texts are cut: windows of `tokens` tokens of the text, each beginning `overlap` before the last one's end.

    late: windows are pooled from passes that read as much of the text as the encoder takes.
    """

    tokens: int
    overlap: int = 0
    late: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tokens:
            raise UserError(
                f"overlap_tokens = {self.overlap} must be less than window_tokens = {self.tokens}; lower it"
            )


class Whole(NamedTuple):
    """A text as tokens, uncut: what stands before its own, they, and what stands after."""

    front: Sequence[int]
    own: Sequence[int]
    after: Sequence[int]
    #: The characters of the text that each of its own tokens holds: [start, end), never going back.
    offsets: Sequence[Span]
    #: Characters of the text.
    characters: int
    #: How many tokens at the end of `front`, and at the beginning of `after`, are pooled with a window that is a pass.
    pooled_front: int = 0
    pooled_after: int = 0


@dataclass(frozen=True)
class Windows:
    """What each vector is pooled from: tokens [start, end) of a row of a TokenBatch. int64 [W] each.

    `text` says which text a window is of; the windows of a text stand together, in order. Its characters are
    [char_start, char_end) of the text: the windows of a text cover all of it.
    """

    text: np.ndarray
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    char_start: np.ndarray
    char_end: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    @property
    def lengths(self) -> np.ndarray:
        """Pooled tokens of each window, [W]."""
        return self.end - self.start

    @classmethod
    def uncut(cls, tokens: TokenBatch) -> Self:
        """One window a row of the batch: each text as it was tokenized. Its characters are not told: [0, 0)."""
        rows, none = np.arange(len(tokens)), np.zeros(len(tokens), np.int64)
        return cls(rows, rows, tokens.pool_start.astype(np.int64), tokens.pool_end.astype(np.int64), none, none)

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[int, ...]]) -> Self:
        """From (text, row, start, end, char_start, char_end) a window."""
        table = np.array(rows, np.int64).reshape(-1, 6)
        return cls(*(np.ascontiguousarray(column) for column in table.T))

    def number(self) -> np.ndarray:
        """The place of each window among those of its text, from 0."""
        first_W = np.concatenate([[True], self.text[1:] != self.text[:-1]])[: len(self)]
        places_W = np.arange(len(self))
        return places_W - np.maximum.accumulate(np.where(first_W, places_W, 0))

    def after(self, before_N: np.ndarray) -> Self:
        """The same windows, their characters counted from `before_N` characters on in each text."""
        shift_W = before_N[self.text]
        start, end = np.maximum(self.char_start - shift_W, 0), np.maximum(self.char_end - shift_W, 0)
        return replace(self, char_start=start, char_end=end)

    def to_arrow(self) -> pa.Table:
        """A table of six int64 columns."""
        return pa.table({field.name: pa.array(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """Read what `to_arrow` gave."""
        return cls(*(table.column(field.name).to_numpy() for field in fields(cls)))


def cut(texts: Sequence[Whole], windowing: Windowing, max_length: int) -> tuple[TokenBatch, Windows]:
    """The passes over these texts and the windows in them. What stands around a text is repeated in every pass.

    Raises UserError when a window does not fit into `max_length` tokens together with what stands around it.

    >>> text = Whole([1], [10, 11, 12, 13, 14], [2], [(0, 2), (2, 4), (5, 7), (7, 9), (9, 11)], 11)
    >>> tokens, windows = cut([text], Windowing(tokens=3, overlap=1), max_length=8)
    >>> [tokens.row(i).tolist() for i in range(len(tokens))]
    [[1, 10, 11, 12, 2], [1, 12, 13, 14, 2]]
    >>> windows.char_start.tolist(), windows.char_end.tolist()
    ([0, 5], [7, 11])
    """
    passes: list[list[int]] = []
    pools: list[Span] = []
    rows: list[tuple[int, ...]] = []
    for number, text in enumerate(texts):
        room = max_length - len(text.front) - len(text.after)
        if windowing.tokens > room:
            raise UserError(
                f"window_tokens = {windowing.tokens} and the {max_length - room} tokens around each window are more "
                f"than the encoder's max_length = {max_length}; set window_tokens to {max(room, 1)} or less"
            )
        spans = list(_window_spans(text.offsets, windowing))
        grouped = _passes(spans, room, windowing.tokens) if windowing.late else [(*span, [span]) for span in spans]
        for begin, end, inside in grouped:
            ids = [*text.front, *text.own[begin:end], *text.after]
            front = len(text.front)
            pool = (front - text.pooled_front, front + end - begin + text.pooled_after)
            pools.append(
                pool if end > begin else (0, len(ids))
            )  # a text without any token: the whole row stands for it
            for span in inside:
                own = (front + span[0] - begin, front + span[1] - begin)
                pooled = own if windowing.late and end > begin else pools[-1]
                rows.append((number, len(passes), *pooled, *_characters(text, span)))
            passes.append(ids)
    return TokenBatch.from_rows(passes, pools), Windows.of_rows(rows)


def join(pieces: Sequence[tuple[Sequence[int] | np.ndarray, TokenBatch, Windows]]) -> tuple[TokenBatch, Windows]:
    """Several cuts as one; each comes with its texts' numbers, of which its windows' texts become the places in order.

    The numbers ascend from piece to piece; numbers that no piece has are closed up.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    texts = rows = 0
    for numbers, tokens, one in pieces:
        columns.append((one.text + texts, one.row + rows, one.start, one.end, one.char_start, one.char_end))
        texts += len(numbers)
        rows += len(tokens)
    joined = concatenate([tokens for _, tokens, _ in pieces])
    if not columns:
        return joined, Windows.of_rows([])
    return joined, Windows(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def select(tokens: TokenBatch, windows: Windows, texts: np.ndarray) -> tuple[TokenBatch, Windows]:
    """The passes and windows of some texts, ascending; texts and rows are numbered anew from 0."""
    chosen = np.isin(windows.text, texts)
    rows, row = np.unique(windows.row[chosen], return_inverse=True)
    kept = Windows(
        np.searchsorted(texts, windows.text[chosen]),
        row.reshape(-1).astype(np.int64),
        windows.start[chosen],
        windows.end[chosen],
        windows.char_start[chosen],
        windows.char_end[chosen],
    )
    return tokens.select(rows), kept


def _window_spans(offsets: Sequence[Span], windowing: Windowing) -> Iterator[Span]:
    """Ranges of tokens. No window begins or ends within a character, where it is possible at all."""
    start, count = 0, len(offsets)
    while count - start > windowing.tokens:
        end = _between_characters(offsets, start + windowing.tokens, start + windowing.overlap + 1)
        yield start, end
        start = _between_characters(offsets, end - windowing.overlap, start + 1)
    yield start, count


def _between_characters(offsets: Sequence[Span], place: int, least: int) -> int:
    """The last place up to `place` where a character ends; `place` itself when there is none from `least` on.

    Byte-level tokenizers split a rare character into several tokens, each of which has the whole of it as its offset.
    """
    inside = (at for at in range(place, least - 1, -1) if offsets[at][0] >= offsets[at - 1][1])
    return next(inside, place)


def _passes(spans: Sequence[Span], room: int, size: int) -> Iterator[tuple[int, int, list[Span]]]:
    """Ranges of at most `room` tokens, and the windows pooled from each: as many as fit, once each.

    Every range after the first begins up to a window's `size` earlier than its first window, which so has seen what
    stands before it.
    """
    context, count, done = min(size, room - size), spans[-1][1], 0
    while done < len(spans):
        begin = max(0, spans[done][0] - context)
        end = min(count, begin + room)
        inside = [span for span in spans[done:] if span[1] <= end]
        yield begin, end, inside
        done += len(inside)


def _characters(text: Whole, span: Span) -> Span:
    """From the first token's first character to the next token's, so that what lies between tokens is not lost."""
    start, end = span
    first = 0 if start == 0 else text.offsets[start][0]
    return first, text.characters if end == len(text.offsets) else max(text.offsets[end - 1][1], text.offsets[end][0])
