"""Pairs out of docstrings: the summary line asks, the rest answers. Which documents are held out from all training.

Knows texts and ids. Knows no tokenizer, no model.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import pyarrow as pa

#: Share of the documents that no training ever sees; the retrieval task asks about these.
HELD_OUT_SHARE = 0.05
MIN_SUMMARY_CHARACTERS = 15
MAX_SUMMARY_CHARACTERS = 300
MIN_REST_CHARACTERS = 60

_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n")


class Pair(NamedTuple):
    """A query and the text that answers it. id: of the document both come from."""

    id: str
    query: str
    positive: str


def split_docstring(text: str) -> tuple[str, str] | None:
    """Split a docstring into its summary (first paragraph, on one line) and the rest; None when either is too short.

    >>> split_docstring("Join two paths.\\n\\nThe second part is put after the first, with one separator between both.")
    ('Join two paths.', 'The second part is put after the first, with one separator between both.')
    >>> split_docstring("Join two paths.") is None
    True
    """
    head, *tail = _PARAGRAPH_BREAK.split(text.strip(), maxsplit=1)
    summary, rest = " ".join(head.split()), tail[0].strip() if tail else ""
    if not MIN_SUMMARY_CHARACTERS <= len(summary) <= MAX_SUMMARY_CHARACTERS or len(rest) < MIN_REST_CHARACTERS:
        return None
    return summary, rest


def is_held_out(document_id: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a document is kept out of training, by a hash of its id: the same answer everywhere, for ever."""
    digest = hashlib.sha256(f"held-out:{document_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def docstring_pairs(table: pa.Table, *, held_out: bool) -> list[Pair]:
    """The pairs of a corpus with columns id and text: those held out, or all the others. Queries are unique."""
    seen: set[str] = set()
    pairs = []
    for document_id, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
        if is_held_out(document_id) != held_out:
            continue
        parts = split_docstring(text)
        if parts is not None and parts[0] not in seen:
            seen.add(parts[0])
            pairs.append(Pair(document_id, *parts))
    return pairs
