"""Reading a text as LLM2Vec's reference implementation (McGill-NLP/llm2vec 0.2.3) does, where that differs from ours.

For adapters that others published and measured that way. Everything here is a function of one text. What the reference
makes of the other texts of a batch is not: it pools an empty text over its row's padding too (we: over its row), so an
empty text's vector there depends on its neighbours. Its weighted mean of an empty text, alone left out here, is zeros.
Checked against that version itself, on transformers 4.44.2. Knows strings and counts. Knows no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import PositiveInt

from rayvec.config import Config

# What the reference puts between instruction and text. It is taken out again before the model reads them, so it can be
# seen only in a text that holds it: all after its next occurrence counts as read, but not as the text's own.
SEPARATOR = "!@#$%^&*()"


class Llm2VecReading(Config):
    """The reference's rules, by which `Prompts.compat` replaces ours.

    The pooled tokens are the row's last n, where n counts the text and the template after it, cut into tokens alone.
    So the template's closing tokens are pooled, and after truncation some of the instruction's are.
    """

    #: A text of more tokens loses whole words at its end until it has no more; one without spaces loses all of it.
    doc_max_length: PositiveInt = 400
    #: Leave what stands before the text out of the pooling; else pool the whole row, with the tokenizer's own tokens.
    skip_instruction: bool = True
    #: What stands after everything, for pooling of the last token.
    ending: str = ""

    def shortened(self, text: str, count: Callable[[str], int]) -> str:
        """The text without the words that are too many; `count` gives a string's tokens, at most the maximum length.

        >>> Llm2VecReading(doc_max_length=3).shortened("a b  c d e f", lambda text: len(text.split()))
        'a b c'
        """
        while (tokens := count(text)) > self.doc_max_length:
            words, kept = text.split(), self.doc_max_length / tokens
            text = " ".join(words[: int(len(words) * kept)])
        return text

    def dressed(self, before: str, text: str, after: str) -> tuple[str, str]:
        """What the model reads, and the part of it that is counted as the text.

        >>> Llm2VecReading().dressed("[INST] Find it: ", "a list ", " [/INST]")
        ('[INST] Find it: a list [/INST]', 'a list [/INST]')
        """
        own = text.rstrip() if after or self.ending else text
        parts = (before + SEPARATOR + own + after + self.ending).split(SEPARATOR)
        return "".join(parts), parts[1]

    def span(self, length: int, own: int) -> tuple[int, int]:
        """The pooled tokens of a row of `length` tokens whose text alone has `own`.

        >>> Llm2VecReading().span(10, own=4), Llm2VecReading().span(10, own=0)
        ((6, 10), (0, 10))
        """
        return max(0, length - own) if self.skip_instruction and own else 0, length
