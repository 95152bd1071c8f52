"""Echo embeddings: a decoder reads each text twice, and the second copy is pooled, whose tokens have seen all of it.

Springer, Kotha, Fried, Neubig and Raghunathan 2024 (arXiv 2402.15449), the baseline that LLM2Vec compares itself with:
no training and no other mask, paid for with twice the tokens. Knows a TextEncoder and its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayvec.errors import UserError
from rayvec.fingerprint import Fingerprint
from rayvec.modeling.tokens import TokenBatch
from rayvec.modeling.windows import Windowing, Windows

if TYPE_CHECKING:
    from rayvec.modeling.encoder import TextEncoder

#: What stands before the copies, as in the paper's prompts.
BEFORE, BETWEEN = "Rewrite the sentence: ", ", rewritten sentence: "


class EchoEncoder:
    """An Encoder that shows its model `before`, the text, `between`, and the text again, of which it pools that last.

    `max_length` is what of a text is read, once; a row has somewhat more than twice as many tokens.
    """

    def __init__(self, encoder: TextEncoder, *, before: str = BEFORE, between: str = BETWEEN) -> None:
        manifest = encoder.folder.manifest
        if manifest.prompts.template != "none" or manifest.prompts.append_eos or manifest.prompts.compat is not None:
            raise UserError("echo embeddings need an encoder without chat template, end token and compat reading")
        self.encoder = encoder
        self.dim = encoder.dim
        self.vocab_size = encoder.vocab_size
        self.max_length = manifest.max_length
        tokenizer = encoder.folder.tokenizer
        backend = tokenizer.tokenizer.backend_tokenizer
        self._before = [int(i) for i in backend.encode(before, add_special_tokens=False).ids]
        self._between = [int(i) for i in backend.encode(between, add_special_tokens=False).ids]
        self._words = (before, between)
        positions = getattr(encoder.backbone.config.get_text_config(), "max_position_embeddings", None)
        longest = 2 * self.max_length + len(self._before) + len(self._between)
        if positions is not None and longest > int(positions):
            fits = (int(positions) - len(self._before) - len(self._between)) // 2
            raise UserError(
                f"a text of {self.max_length} tokens is {longest} when read twice, and the model has {positions} "
                f"positions; read with max_length={fits} at most"
            )

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder's, read twice."""
        own = self.encoder.fingerprint
        return own.replace(pooling=f"echo/{own.pooling}/{self._words[0]}/{self._words[1]}")

    @property
    def arithmetic(self) -> str:
        """In which numbers the encoder computes, and on what."""
        return self.encoder.arithmetic

    @property
    def instructions(self) -> Mapping[str, str]:
        """The encoder's instructions by name."""
        return self.encoder.instructions

    def reading(self, max_length: int) -> EchoEncoder:
        """Refused: an encoder reads what it was made for. Raises UserError."""
        raise UserError(
            f"an echo encoder reads {self.max_length} tokens, not {max_length}; make it from another encoder"
        )

    def tokenize(self, texts: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """Rows of: what the tokenizer puts first and the instruction, before, the text, between, the text."""
        once = self.encoder.tokenize(texts, instruction)
        rows, spans = [], []
        for i, (start, stop) in enumerate(zip(once.pool_start.tolist(), once.pool_end.tolist(), strict=True)):
            ids = once.row(i)
            text = ids[start:stop]
            head = [*ids[:start].tolist(), *self._before, *text.tolist(), *self._between]
            rows.append(np.array([*head, *text.tolist()], np.int32))
            spans.append((len(head), len(head) + len(text)))
        return TokenBatch.from_rows(rows, spans, once.truncated.tolist())

    def cut(
        self, texts: Sequence[str], windowing: Windowing, instruction: str | None = None
    ) -> tuple[TokenBatch, Windows]:
        """Refused: a window of an echo is not defined. Raises UserError."""
        del texts, windowing, instruction
        raise UserError("echo embeddings are of whole texts; use long=truncate")

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        """Vectors float32 [n, dim] in the order of the rows."""
        return self.encoder.encode_tokens(batch)

    def encode_windows(self, batch: TokenBatch, windows: Windows) -> np.ndarray:
        """Vectors float32 [W, dim] of spans of the rows."""
        return self.encoder.encode_windows(batch, windows)

    def places(self, lengths: np.ndarray) -> int:
        """Tokens that are computed for rows of these lengths."""
        return self.encoder.places(lengths)

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """Tokenize, then encode: float32 [n, dim]; [dim] of one text that is no list."""
        if isinstance(texts, str):
            return self.encode([texts], instruction)[0]
        return self.encode_tokens(self.tokenize(texts, instruction))
