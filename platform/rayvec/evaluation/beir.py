"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/<split>.tsv as a retrieval task. The corpus is streamed.

Knows files. Knows no encoder and no index.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from rayvec import storage, uris
from rayvec.data.sources import Source, SourceConfig, open_source
from rayvec.errors import UserError
from rayvec.evaluation.text_files import csv_rows, read_text

CORPUS_NAMES = ("corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst", "corpus.parquet")
QUERY_NAMES = ("queries.jsonl", "queries.jsonl.gz", "queries.jsonl.zst", "queries.parquet")
_UNIT_ROWS = 4096

Texts = tuple[list[str], list[str]]


class Corpus(Protocol):
    """Documents that can be gone through as often as needed."""

    def batches(self) -> Iterator[Texts]:
        """Ids and texts, some thousands at a time, always in the same order."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Records that the last pass could not use, by reason."""


@dataclass(frozen=True)
class Task:
    """Queries, the documents they are asked of, and which of these answer them."""

    name: str
    corpus: Corpus
    query_ids: Sequence[str]
    queries: Sequence[str]
    qrels: Mapping[str, Mapping[str, int]]
    #: Queries that are judged but not there.
    queries_missing: int = 0


@dataclass(frozen=True)
class ListedCorpus:
    """Documents that are held in memory."""

    ids: list[str]
    texts: list[str]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def batches(self) -> Iterator[Texts]:
        """See Corpus."""
        for start in range(0, len(self.ids), _UNIT_ROWS):
            yield self.ids[start : start + _UNIT_ROWS], self.texts[start : start + _UNIT_ROWS]


@dataclass(frozen=True)
class FileCorpus:
    """Documents that are read anew each time; a title stands on a line of its own before its text."""

    source: Source
    left_out: Counter[str] = field(default_factory=Counter)

    def batches(self) -> Iterator[Texts]:
        """See Corpus."""
        self.left_out.clear()
        for unit in self.source.units(_UNIT_ROWS):
            data = self.source.read(unit)
            self.left_out.update(rejected.reason for rejected in data.rejected)
            yield data.table["id"].to_pylist(), data.table["text"].to_pylist()


def load_beir(folder: str, split: str = "test") -> Task:
    """Open a folder in BEIR's layout. Raises UserError that says what is missing."""
    names = storage.list_names(folder)
    if not names:
        raise UserError(f"{folder} does not exist or is empty; give a folder in BEIR's layout, or a suite's name")
    corpus = _open(folder, names, CORPUS_NAMES, titles=True)
    queries = _open(folder, names, QUERY_NAMES, titles=False)
    qrels = read_qrels(_qrels_file(folder, split))
    texts = _queries(queries)
    judged = [query for query in qrels if query in texts]
    if not judged:
        raise UserError(
            f"{folder}: no query of qrels/{split}.tsv is in {QUERY_NAMES[0]}; check that the ids are the same"
        )
    name = PurePosixPath(uris.absolute(folder)).name
    return Task(name, FileCorpus(corpus), judged, [texts[query] for query in judged], qrels, len(qrels) - len(judged))


def _open(folder: str, names: Sequence[str], wanted: Sequence[str], *, titles: bool) -> Source:
    found = [name for name in wanted if name in names]
    if not found:
        raise UserError(f"{folder} has no {wanted[0]} (or {', '.join(wanted[1:])}); it needs BEIR's layout")
    config = SourceConfig(path=uris.join(folder, found[0]))
    source = open_source(config)
    if titles and source.layout.title is not None:
        # Documents of a title alone are documents too (CACM has many).
        title = source.layout.title
        return open_source(config.replace(title_column=title, text_columns=(title, *source.layout.text)))
    return source


def read_titled(folder: str) -> list[dict[str, str]]:
    """The documents of a folder in BEIR's layout with title and text apart: id, title and text of each."""
    source = _open(folder, storage.list_names(folder), CORPUS_NAMES, titles=True)
    documents = []
    for unit in source.units(_UNIT_ROWS):
        for row in source.read(unit).table.select(["id", "title", "text"]).to_pylist():
            title = row["title"] or ""
            # The title stands before the text; what is joined by mteb has it once.
            text = row["text"].removeprefix(title).removeprefix("\n") if title else row["text"]
            documents.append({"id": row["id"], "title": title, "text": text})
    return documents


def _queries(source: Source) -> dict[str, str]:
    texts: dict[str, str] = {}
    for unit in source.units(_UNIT_ROWS):
        table = source.read(unit).table
        texts.update(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return texts


def _qrels_file(folder: str, split: str) -> str:
    there = storage.list_names(uris.join(folder, "qrels"))
    for name in (f"{split}.tsv", f"{split}.tsv.gz"):
        if name in there:
            return uris.join(folder, "qrels", name)
    known = ", ".join(name.split(".")[0] for name in there) or "none"
    raise UserError(f"{folder} has no qrels/{split}.tsv; splits there: {known}; choose one with --set split=…")


def read_qrels(uri: str) -> dict[str, dict[str, int]]:
    """Judgements by query and document, from lines of query, document and score, or TREC's four columns.

    Raises UserError that names the file, and the line where one is at fault.
    """
    text = read_text(uri, "a file of query-id, corpus-id and score, separated by tabs")
    qrels: dict[str, dict[str, int]] = {}
    for number, parts in enumerate(csv_rows(text, uri, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
        fields = parts if len(parts) > 1 else " ".join(parts).split()
        if not fields or (number == 1 and not _is_whole(fields[-1])):
            continue  # a blank line; the header
        if len(fields) not in (3, 4) or not _is_whole(fields[-1]):
            raise UserError(f"{uri}, line {number}: needs query-id, corpus-id and a whole number, separated by tabs")
        qrels.setdefault(fields[0], {})[fields[-2]] = int(float(fields[-1]))
    if not qrels:
        raise UserError(f"{uri} holds no judgements")
    return qrels


def _is_whole(text: str) -> bool:
    """Whether it is a whole number, perhaps as pandas writes one beside numbers that are missing: 1.0."""
    return re.fullmatch(r"-?\d{1,9}(\.0*)?", text.strip()) is not None
