"""TextTokenizer: texts to token batches, cut by tokens, with exactly the text's surviving tokens pooled.

Runs on the CPU alone. Knows fast tokenizers and prompts. Knows no model and no torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayvec.errors import UserError
from rayvec.modeling.compat import Llm2VecReading
from rayvec.modeling.prompts import TEMPLATES, Prompts, Template, text_tokens
from rayvec.modeling.tokens import TokenBatch, require_several
from rayvec.modeling.windows import Whole, Windowing, Windows, cut
from rayvec.storage import sha256_bytes

# A text is read up to this many characters for each token that may survive; one that packs more into its tokens is
# read whole after all, so this changes the time that a 1 MB document takes and never its tokens.
CHARACTERS_A_TOKEN = 32


class TextTokenizer:
    """A fast tokenizer with an encoder's prompts and maximum length (tokens, special ones and template included)."""

    def __init__(self, tokenizer: Any, prompts: Prompts, max_length: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError("the tokenizer has no tokenizer.json (a fast tokenizer); convert it to one first")
        if max_length < 2:
            raise UserError(f"max_length must be at least 2 tokens, got {max_length}")
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.max_length = max_length
        # A copy of our own: limits and padding that others set on the shared one never reach us.
        self._backend = copy.deepcopy(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        sample = self._backend.encode("a").special_tokens_mask
        self._front = sample.index(0) if 0 in sample else 0
        self._back = sample[::-1].index(0) if 0 in sample else 0
        self._closes = self._closes_itself()

    @classmethod
    def load(cls, folder: str | Path, prompts: Prompts, max_length: int) -> TextTokenizer:
        """From a folder with tokenizer files. Raises UserError when there are none."""
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(folder)), prompts, max_length)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            detail = " ".join(str(error).split())[:160]
            raise UserError(f"{folder} holds no usable tokenizer ({detail}); save tokenizer.json beside it") from None

    @property
    def digest(self) -> str:
        """A hash of everything that moves tokens: vocabulary, merges, normalisation, special tokens."""
        state = json.loads(self._backend.to_str())
        return sha256_bytes(json.dumps(state, sort_keys=True, separators=(",", ":")).encode())

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer puts tokens of its own around a text."""
        return bool(self._front or self._back)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """Token ids and pooled spans. The text is cut at its end; instruction and template always survive.

        Raises UserError when the instruction and the template leave no room for a text.
        """
        require_several(texts)
        before, after = self._surroundings(instruction)
        if self.prompts.compat is not None:
            return self._as_reference(texts, before, after, self.prompts.compat)
        limit = self.max_length * CHARACTERS_A_TOKEN
        rows = self._rows([text[:limit] for text in texts], before, after)
        for i, text in enumerate(texts):
            if len(text) > limit:
                # Only tokens far from the cut are sure to be those of the whole text.
                enough = rows[i].span[1] - rows[i].span[0] >= 2 * self.max_length
                rows[i] = rows[i] if enough else self._rows([text], before, after)[0]
        cut = [self._cut(row) for row in rows]
        spans = [self._pooled(row) for row in cut]
        return TokenBatch.from_rows([row.ids for row in cut], spans, [row.truncated for row in cut])

    def cut(
        self, texts: Sequence[str], windowing: Windowing, instruction: str | None = None
    ) -> tuple[TokenBatch, Windows]:
        """The passes over these texts and the windows in them; instruction and template stand in every pass.

        Windows are cut between the tokens of the whole text, so a word may stand in two. Raises UserError when a
        window and what stands around it are more than `max_length`, or the encoder reads as the reference does.
        """
        if self.prompts.compat is not None:
            raise UserError("an encoder that reads as LLM2Vec's reference does cuts texts off; use long=truncate")
        before, after = self._surroundings(instruction)
        return cut([self._whole(text, before, after) for text in texts], windowing, self.max_length)

    def _closes_itself(self) -> bool:
        """Whether the tokenizer itself puts the chat format's end after a text, as an exported one does."""
        end = self._backend.encode(TEMPLATES[self.prompts.template].suffix, add_special_tokens=False).ids
        ids = self._backend.encode("a").ids
        return bool(end) and ids[len(ids) - self._back :][: len(end)] == end

    def _surroundings(self, instruction: str | None) -> Template:
        before, after = self.prompts.surroundings(instruction)
        return Template(before, "" if self._closes else after)

    def _whole(self, text: str, before: str, after: str) -> Whole:
        encoding = self._backend.encode(before + text + after)
        row = self._dressed(encoding, len(before), len(before) + len(text))
        start, stop = row.span
        behind = self._with_eos(row)
        bare = not before and not after
        if not row.ids and not behind:
            return Whole([self._stand_in()], [], [], [], len(text))
        return Whole(
            front=row.ids[:start],
            own=row.ids[start:stop],
            after=behind,
            offsets=[
                (min(max(a - len(before), 0), len(text)), min(max(b - len(before), 0), len(text)))
                for a, b in encoding.offsets[start:stop]
            ],
            characters=len(text),
            pooled_front=start if self.prompts.pool_special and bare else 0,
            pooled_after=len(behind) if self.prompts.pool_special or self.prompts.append_eos else 0,
        )

    def _as_reference(self, texts: Sequence[str], before: str, after: str, rule: Llm2VecReading) -> TokenBatch:
        """Tokens and pooled spans by the reference implementation's rules: a row is cut at its end, whatever it is."""
        cut = [rule.shortened(text, self._tokens_alone) for text in texts]
        dressed = [rule.dressed(before, text, after) for text in cut]
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast([whole for whole, _ in dressed])]
        kept = [self._first(ids) or [self._stand_in()] for ids in rows]
        spans = [rule.span(len(ids), self._tokens_alone(own)) for ids, (_, own) in zip(kept, dressed, strict=True)]
        shorter = [len(ids) > self.max_length or a != b for ids, a, b in zip(rows, texts, cut, strict=True)]
        return TokenBatch.from_rows(kept, spans, shorter)

    def _tokens_alone(self, text: str) -> int:
        """A string's tokens without the tokenizer's own, counted up to the maximum length."""
        return min(self.max_length, len(self._backend.encode(text, add_special_tokens=False).ids))

    def _first(self, ids: list[int]) -> list[int]:
        """The row cut to the maximum length; the tokens that the tokenizer added stay."""
        end = len(ids) - self._back
        return [*ids[: min(end, self.max_length - self._back)], *ids[end:]]

    def _rows(self, texts: list[str], before: str, after: str) -> list[_Row]:
        if not before and not after:
            encodings = self._backend.encode_batch_fast(texts)
            return [self._bare(encoding.ids) for encoding in encodings]
        encodings = self._backend.encode_batch([before + text + after for text in texts])
        return [self._dressed(e, len(before), len(before) + len(t)) for e, t in zip(encodings, texts, strict=True)]

    def _bare(self, ids: list[int]) -> _Row:
        """A row that is the text and the tokenizer's own tokens around it: their number is always the same."""
        return _Row(ids, (self._front, len(ids) - self._back), dressed=False)

    def _dressed(self, encoding: Any, start: int, stop: int) -> _Row:
        span = text_tokens(encoding.offsets, encoding.special_tokens_mask, start, stop)
        return _Row(encoding.ids, span, dressed=True)

    def _cut(self, row: _Row) -> _Row:
        """The row with its end-of-sequence token, its text cut so that the whole has at most `max_length` tokens."""
        start, stop = row.span
        ids, after = row.ids, self._with_eos(row)
        room = self.max_length - start - len(after)
        if room < 1:
            raise UserError(
                f"instruction and template take {start + len(after)} of {self.max_length} tokens and leave none for "
                "the text; shorten the instruction or raise max_length"
            )
        kept = min(stop, start + room)
        if kept == stop and len(after) == len(ids) - stop:
            return row
        return _Row([*ids[:kept], *after], (start, kept), row.dressed, truncated=kept < stop)

    def _with_eos(self, row: _Row) -> list[int]:
        """What stands after the text's own tokens, with an end-of-sequence token where one is asked for."""
        ids, after = row.ids, row.ids[row.span[1] :]
        if self.prompts.append_eos and (not ids or ids[-1] != self.tokenizer.eos_token_id):
            after = [*after, self._eos()]
        return after

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise UserError("append_eos needs a tokenizer with an end-of-sequence token; choose another pooling")
        return int(self.tokenizer.eos_token_id)

    def _pooled(self, row: _Row) -> tuple[int, int]:
        """The pooled span: the text's tokens. An empty text has none; then the whole row stands for it."""
        if not row.ids:
            row.ids = [self._stand_in()]
        start, stop = row.span
        if start >= stop:
            return 0, len(row.ids)
        if self.prompts.pool_special and not row.dressed:
            start = 0
        return start, len(row.ids) if self.prompts.pool_special or self.prompts.append_eos else stop

    def _stand_in(self) -> int:
        """One token for a text that has none at all."""
        tokenizer = self.tokenizer
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        return int(next(i for i in candidates if i is not None))


class _Row:
    """Token ids of one text, and which of them are its own."""

    __slots__ = ("dressed", "ids", "span", "truncated")

    def __init__(self, ids: list[int], span: tuple[int, int], dressed: bool, truncated: bool = False) -> None:
        self.ids = ids
        self.span = span
        self.dressed = dressed
        self.truncated = truncated
