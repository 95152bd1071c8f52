"""Prompts: the instruction and the chat template around a text, and exactly which tokens are the text's own.

`render` gives the whole string and the range of characters that is the text; `text_tokens` finds the tokens of that
range from a fast tokenizer's character offsets. Knows strings and offsets. Knows no model and no tokenizer class.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer

from rayvec.config import Config
from rayvec.errors import UserError
from rayvec.modeling.compat import Llm2VecReading


class Template(NamedTuple):
    """What a chat format puts before and after a user's text; the tokenizer itself adds <s> and its like."""

    prefix: str
    suffix: str


TEMPLATES: dict[str, Template] = {
    "none": Template("", ""),
    "llama3": Template("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "inst": Template("[INST] ", " [/INST]"),
    "gemma": Template("<start_of_turn>user\n", "<end_of_turn>"),
    # As LLM2Vec writes it: the tokenizer's own <bos>, and then another one.
    "gemma_bos": Template("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "qwen": Template("<|im_start|>user\n", "<|im_end|>"),
}

# Which template a model was tuned with, by its name: the first pattern that is found wins.
FAMILIES: tuple[tuple[str, str], ...] = (
    (r"llama-?3.*instruct", "llama3"),
    (r"llama-?2.*chat", "inst"),
    (r"(mistral|mixtral|ministral).*instruct", "inst"),
    (r"gemma-?\d.*-it\b", "gemma"),
    (r"qwen-?[\d.]+.*instruct", "qwen"),
)


def template_for(name: str) -> str:
    """The template's name for a model's name or path; "none" for base models.

    >>> template_for("meta-llama/Meta-Llama-3-8B-Instruct"), template_for("Qwen/Qwen2-7B")
    ('llama3', 'none')
    """
    found = (template for pattern, template in FAMILIES if re.search(pattern, str(name).lower()))
    return next(found, "none")


class Prompts(Config):
    """How texts are dressed before they are read. Part of the encoder's fingerprint."""

    template: str = "none"
    #: Instructions by name, for those who ask: "query" is what search puts before a query.
    instructions: Mapping[str, str] = {}
    #: How an instruction stands before the text. After a line break the text is cut into the same tokens as alone, so
    #: that tools which count an instruction's tokens by themselves (sentence-transformers) find the same boundary.
    instruction_format: str = "{instruction}:\n"
    #: Put the end-of-sequence token after everything and pool up to it (for last_token pooling).
    append_eos: bool = False
    #: Pool the tokens that the tokenizer adds ([CLS], [SEP], <s>) too, as most encoder-only models were trained.
    pool_special: bool = False
    #: Cut and pool by the reference implementation's rules in place of ours; see `compat`.
    compat: Llm2VecReading | None = None

    @model_serializer(mode="wrap")
    def _plain(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `compat` where there is none: it is no part of the fingerprint of an encoder that reads as usual."""
        values: dict[str, Any] = dump(self)
        if self.compat is None:
            values.pop("compat", None)
        return values

    @field_validator("template")
    @classmethod
    def _known_template(cls, name: str) -> str:
        if name not in TEMPLATES:
            raise ValueError(f"unknown template; known are {', '.join(TEMPLATES)}")
        return name

    @field_validator("instruction_format")
    @classmethod
    def _has_place(cls, text: str) -> str:
        if "{instruction}" not in text:
            raise ValueError("it must hold {instruction}")
        return text

    def changed(self, changes: Mapping[str, Any]) -> Prompts:
        """With some fields changed. Instructions are laid over those that are there."""
        named = {**self.instructions, **changes.get("instructions", {})}
        return self.replace(**{**changes, "instructions": named})

    def surroundings(self, instruction: str | None = None) -> Template:
        """What stands before and after each text."""
        before, after = TEMPLATES[self.template]
        if instruction and instruction.strip():
            before += self.instruction_format.replace("{instruction}", instruction.strip())
        return Template(before, after)

    def named(self, name: str) -> str:
        """The instruction of a name. Raises UserError that lists the known ones."""
        if name not in self.instructions:
            known = ", ".join(self.instructions) or "none"
            raise UserError(f"the encoder has no instruction named {name!r}; it has: {known}")
        return self.instructions[name]


def text_tokens(offsets: Sequence[tuple[int, int]], special: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """The range of tokens that hold characters of [start, stop), given each token's character range.

    A token that holds the last space of the instruction and the first letters of the text is the text's; one that
    begins after the text's end is the template's. Tokens that the tokenizer added (`special`) are neither.

    >>> text_tokens([(0, 0), (0, 4), (4, 9), (9, 12), (12, 15)], [1, 0, 0, 0, 0], start=5, stop=12)
    (2, 4)
    """
    front = next((i for i, flag in enumerate(special) if not flag), len(special))
    back = next((i for i, flag in enumerate(reversed(special)) if not flag), 0)
    inner = offsets[front : len(offsets) - back]
    # Offsets never go back, so both ends can be searched: the first token that ends after `start`, and the first
    # token that begins at or after `stop`.
    first = bisect_left(inner, start + 1, key=lambda span: span[1])
    last = max(first, bisect_left(inner, stop, key=lambda span: span[0])) if stop > start else first
    return front + first, front + last
