"""The table of errors in docs/serving.md: every code that the service's source can answer with, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from rayvec.serving import problems
from tests.docs.blocks import ROOT

SERVING = ROOT / "platform" / "rayvec" / "serving"
#: What the makers of problems take as the code, by its place and where it is not given, and the status that they give.
MAKERS = {"unavailable": (1, "unavailable", 503), "invalid": (2, "invalid_value", 422)}
#: Of the framework's own errors, and those that a variable chooses among.
OTHERS = {(status, code) for status, code in problems._CODES.items()}
OTHERS |= {(422, "missing_field"), (422, "unknown_field"), (503, problems.ENCODER_CHANGED)}


def called() -> Iterator[tuple[int, str]]:
    """The statuses and codes of all calls that make a problem with a code that is written there."""
    for file in SERVING.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", "")
            if name == "Problem":
                status, code = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    yield status.value, code.value
            elif name in MAKERS:
                place, usual, made = MAKERS[name]
                by_name = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                given = (by_name or node.args[place : place + 1] or [ast.Constant(usual)])[0]
                if isinstance(given, ast.Constant):
                    yield made, given.value


def table() -> Iterator[tuple[frozenset[int], str]]:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    section = re.split(r"(?m)^## ", text.partition("\n## Errors\n")[2])[0]
    for statuses, codes in re.findall(r"(?m)^\| ([\d, ]+) \| ([^|]+) \|", section):
        for code in re.findall(r"`(\w+)`", codes):
            yield frozenset(map(int, statuses.split(","))), code


def test_the_table_of_errors_has_every_code_of_the_service_and_no_other() -> None:
    told, made = list(table()), {*called(), *OTHERS}
    assert len(made) > 30
    missing = [(status, code) for status, code in made if not any(status in s and code == c for s, c in told)]
    assert missing == []
    assert {code for _, code in told} - {code for _, code in made} == set()
