"""The command blocks of README.md and docs/, and what the comment before a block asks of the test.

A comment `<!-- test: … -->` directly before a block holds, separated by `;`:
    with NAME=VALUE …   words that stand for the reader's own, and what the test puts there
    prepare …           what is there before: `embeddings|index FAMILY CORPUS FOLDER`
    serves              its `python -m jobs.serve` is started, waited for, and ended with the file
    short               its training runs are cut to two steps
    cluster             it runs against a Ray head with a token
    skip REASON         it cannot run in a test; it is parsed, and its jobs are resolved
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Two steps, on the test's own texts and pairs, instead of minutes on all docstrings that are installed.
SHORT = "--set steps=2 --set batch_size=8"
TEXTS = "--set 'data.source={kind: jsonl, path: corpus.jsonl}'"
PAIRS = "--set 'data.sets=[{name: pairs, path: pairs.jsonl}]'"
_BLOCK = re.compile(r"(?:<!-- test: (?P<asks>[^>]*) -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)```", re.DOTALL)


@dataclass
class Block:
    """A block, where it stands, and what its comment asks."""

    where: str
    language: str
    text: str
    skip: str = ""
    serves: bool = False
    short: bool = False
    cluster: bool = False
    prepare: list[str] = field(default_factory=list)

    @property
    def commands(self) -> list[list[str]]:
        """The shell commands, as words; comments and continuation lines gone."""
        if self.language != "bash":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines]
        return [words for words in found if words]

    @property
    def jobs(self) -> list[tuple[str, list[str]]]:
        """The jobs that it names, however they are started, and their arguments."""
        found = []
        for words in self.commands:
            for place, word in enumerate(words):
                named = re.fullmatch(r"(?:/app/)?jobs[./](\w+?)(?:\.py)?", word)
                if named and place and words[place - 1] in ("python", "-m"):
                    end = next((i for i, w in enumerate(words[place:], place) if w in (">", "|", "&")), len(words))
                    found.append((named[1], words[place + 1 : end]))
        return found


def blocks(file: Path) -> list[Block]:
    """The blocks of a file, in order."""
    text = file.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        line = text[: match.start("text")].count("\n") + 1
        block = Block(f"{file.name}:{line}", match["language"], match["text"])
        asks = (match["asks"] or "").strip()
        for ask in filter(None, [asks] if asks.startswith("skip ") else map(str.strip, asks.split(";"))):
            verb, _, rest = ask.partition(" ")
            if verb == "with":
                for name, value in (word.split("=", 1) for word in rest.split()):
                    block.text, times = re.subn(rf"(?<!\w){re.escape(name)}\b", lambda _, v=value: v, block.text)
                    assert times, f"{block.where} has no {name}"
            elif verb == "skip":
                assert len(rest.split()) > 3, f"{block.where}: say why it cannot run"
                block.skip = rest
            elif verb == "prepare":
                block.prepare.append(rest)
            else:
                assert verb in ("serves", "short", "cluster"), f"{block.where}: {verb}?"
                setattr(block, verb, True)
        if block.short:
            block.text = re.sub(r"(?m)^(?!.*--dry-run)(.*jobs[./]train.*?)(\\?)$", _shortened, block.text)
        found.append(block)
    return found


def _shortened(line: re.Match[str]) -> str:
    data = PAIRS if "tiny.supervised" in line[1] else TEXTS
    return f"{line[1]} {SHORT} {data} {line[2]}"
