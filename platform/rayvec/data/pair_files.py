"""Pairs as people hold them: jsonl with the positive as text or as the id of a document, or pairs out of docstrings.

Knows texts and ids. Knows no tokenizer, no model, no index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rayvec import storage
from rayvec.data.pairs import docstring_pairs
from rayvec.data.source_config import SourceConfig
from rayvec.data.sources import open_source
from rayvec.errors import UserError

PYDOCS = "pydocs"
UNIT_ROWS = 4096


class PairLine(NamedTuple):
    """A query and what answers it: a text, the id of a document, or both. place: where it stands, for messages."""

    place: str
    query: str
    positive: str | None
    positive_id: str | None


def read_pairs(path: str, cache: str) -> Iterator[PairLine]:
    """The pairs of a jsonl file, a folder or a glob of them; of "pydocs"; or of a Parquet file of documents.

    Of docstrings the first paragraph asks and the rest answers; held-out documents are left out. `cache`: the folder
    that pydocs are collected in. Raises UserError when nothing is there, naming the line when one is no pair.
    """
    if path == PYDOCS or path.endswith(".parquet"):
        source = open_source(SourceConfig(kind=PYDOCS) if path == PYDOCS else SourceConfig(path=path), cache)
        for unit in source.units(UNIT_ROWS):
            for pair in docstring_pairs(source.read(unit).table, held_out=False):
                yield PairLine(pair.id, pair.query, pair.positive, pair.id)
        return
    for file in _files(path):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse(line, f"{file}:{number}")


def _files(path: str) -> list[Path]:
    place = storage.local_path(path)
    if place.is_dir():
        found = sorted(place.glob("*.jsonl"))
    else:
        found = [place] if place.is_file() else sorted(place.parent.glob(place.name))
    if not found:
        raise UserError(f"no pairs at {path}; give a jsonl file, a folder of them or a glob with --set pairs=…")
    return found


def _parse(line: bytes, place: str) -> PairLine:
    try:
        value = json.loads(line)
        query, positive, id_ = value.get("query"), value.get("positive"), value.get("positive_id")
        id_ = str(id_) if type(id_) is int else id_  # as documents' ids are read
        for text in (query, positive, id_):
            if text is not None:
                text.encode()  # no number or list, and no half of a surrogate pair, which is no text
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{place} is no pair ({type(error).__name__}: {error}); each line is a JSON object with query, and "
            "positive (a text) or positive_id (of a document in the index)"
        ) from None
    if not (query and query.strip()) or not ((positive and positive.strip()) or id_):
        raise UserError(f"{place} lacks query, or both positive (a text) and positive_id; give them, or leave it out")
    return PairLine(place, query, positive if positive and positive.strip() else None, id_)
