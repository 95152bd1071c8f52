from __future__ import annotations

import doctest

import pytest

from rayvec.errors import UserError
from rayvec.modeling import prompts
from rayvec.modeling.prompts import TEMPLATES, Prompts, template_for, text_tokens

NAMES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3",
    "/models/Meta-Llama-3-8B": "none",
    "meta-llama/Llama-2-7b-chat-hf": "inst",
    "mistralai/Mistral-7B-Instruct-v0.2": "inst",
    "mistralai/Mistral-7B-v0.1": "none",
    "google/gemma-2-9b-it": "gemma",
    "google/gemma-2-9b": "none",
    "Qwen/Qwen2-7B-Instruct": "qwen",
    "Qwen/Qwen3-0.6B": "none",
}


def test_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(prompts).failed == 0


@pytest.mark.parametrize(("name", "template"), NAMES.items())
def test_the_template_follows_from_the_models_name(name: str, template: str) -> None:
    assert template_for(name) == template


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_instruction_stands_inside_the_template(name: str) -> None:
    before, after = Prompts(template=name).surroundings(" Find it ")
    assert before == TEMPLATES[name].prefix + "Find it:\n"
    assert after == TEMPLATES[name].suffix


def test_a_blank_instruction_is_none() -> None:
    assert Prompts().surroundings("  ") == Prompts().surroundings()


def test_an_unknown_template_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="llama3"):
        Prompts.parse({"template": "llama4"})


def test_an_instruction_format_without_its_place_is_refused() -> None:
    with pytest.raises(UserError, match="instruction_format"):
        Prompts.parse({"instruction_format": "Instruct: "})


def test_an_unknown_instruction_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="query"):
        Prompts(instructions={"query": "Find"}).named("passage")


@pytest.mark.parametrize(
    ("offsets", "start", "stop", "expected"),
    [
        ([(0, 3), (3, 9), (9, 12)], 4, 12, (1, 3)),  # the token over the instruction's end holds text too
        ([(0, 4), (4, 8), (8, 12)], 4, 8, (1, 2)),  # boundaries between tokens
        ([(0, 4), (4, 5), (4, 5), (4, 5), (5, 9)], 4, 5, (1, 4)),  # one character of three bytes
        ([(0, 4), (4, 10)], 4, 8, (1, 2)),  # the token over the text's end is the text's
        ([(0, 4), (4, 8)], 4, 4, (1, 1)),  # an empty text
        ([(0, 4)], 4, 4, (1, 1)),
    ],
)
def test_a_tokens_owner_is_told_by_its_characters(
    offsets: list[tuple[int, int]], start: int, stop: int, expected: tuple[int, int]
) -> None:
    assert text_tokens(offsets, [0] * len(offsets), start, stop) == expected
