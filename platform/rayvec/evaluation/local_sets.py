"""Labelled sets from local files: texts with a class, pairs that belong together or not, candidates to rerank.

    texts with a class   csv with a header, jsonl, or "label text" lines (.txt); a folder holds train.* and test.*
    pairs                csv with a header or jsonl: sentence1, sentence2 and a label of 0 or 1
    candidates           jsonl: query, positive and negative (each a list of texts)

All may be gzipped. Knows files. Knows no encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec import storage, uris
from rayvec.errors import UserError
from rayvec.evaluation.text_files import csv_rows, read_text

TEXT_COLUMNS = ("text", "sentence", "sentences", "content")
LABEL_COLUMNS = ("label", "labels", "category", "class", "label_text")
FIRST_COLUMNS = ("sentence1", "first", "sent1", "text1")
SECOND_COLUMNS = ("sentence2", "second", "sent2", "text2")
_EXTENSIONS = (".csv", ".jsonl", ".txt")
_WANTED = "a file of texts and labels (.csv, .jsonl or .txt, maybe .gz)"


@dataclass(frozen=True)
class Labelled:
    """Texts, and the class of each."""

    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def spread(self, limit: int | None) -> Labelled:
        """At most so many, at equal distances: sets are often ordered by class."""
        if limit is None or len(self) <= limit:
            return self
        places = [i * len(self) // limit for i in range(limit)]
        return Labelled([self.texts[i] for i in places], [self.labels[i] for i in places])


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs of texts; label 1 where they belong together, else 0."""

    first: list[str]
    second: list[str]
    labels_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Queries, and for each some documents, of which those judged above 0 are to be put first."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    #: The documents' ids of each query.
    candidates: Mapping[str, Sequence[str]]
    qrels: Mapping[str, Mapping[str, int]]


def read_split(folder: str) -> tuple[Labelled, Labelled]:
    """The texts to learn from and to be asked about: train.* and test.* of a folder. Raises UserError."""
    names = storage.list_names(folder)
    if not names:
        raise UserError(f"{folder} does not exist or is empty; give a folder with train.csv and test.csv")
    train, test = (read_labelled(uris.join(folder, _named(names, part, folder))) for part in ("train", "test"))
    if unknown := sorted(set(test.labels) - set(train.labels)):
        raise UserError(f"{folder}: the label {unknown[0]!r} of test is not in train; give texts of every class")
    return train, test


def _named(names: Sequence[str], part: str, folder: str) -> str:
    wanted = [part + extension + zipped for extension in _EXTENSIONS for zipped in ("", ".gz")]
    found = [name for name in wanted if name in names]
    if not found:
        raise UserError(f"{folder} has no {part}.csv (or {', '.join(wanted[1:])}); put one there")
    return found[0]


def read_labelled(uri: str) -> Labelled:
    """Texts with a class. Raises UserError that names the record."""
    if uri.removesuffix(".gz").endswith(".txt"):
        return _label_first(uri)
    records = read_records(uri)
    text, label = _column(uri, records, TEXT_COLUMNS), _column(uri, records, LABEL_COLUMNS)
    return _several(uri, Labelled([str(r[text]) for r in records], [str(r[label]) for r in records]))


def _label_first(uri: str) -> Labelled:
    lines = [line.partition(" ") for line in read_text(uri, _WANTED).split("\n") if line.strip()]
    if any(not text.strip() for _, _, text in lines):
        number = next(i for i, (_, _, text) in enumerate(lines, 1) if not text.strip())
        raise UserError(f"{uri}, line {number}: needs a label, a space and a text")
    return _several(uri, Labelled([text.strip() for _, _, text in lines], [label for label, _, _ in lines]))


def _several(uri: str, found: Labelled) -> Labelled:
    if len(set(found.labels)) < 2:
        raise UserError(f"{uri} holds {len(set(found.labels))} classes in {len(found)} texts; at least 2 are needed")
    return found


def read_labelled_pairs(uri: str) -> LabelledPairs:
    """Pairs with a label. Raises UserError that names the record."""
    records = read_records(uri)
    first, second = _column(uri, records, FIRST_COLUMNS), _column(uri, records, SECOND_COLUMNS)
    label = _column(uri, records, LABEL_COLUMNS)
    for number, record in enumerate(records, 1):
        if str(record[label]) not in ("0", "1"):
            raise UserError(f"{uri}, record {number}: the label is {record[label]!r}; it must be 0 or 1")
    labels_N = np.array([int(record[label]) for record in records], np.int64)
    if not 0 < labels_N.sum() < len(labels_N):
        raise UserError(f"{uri} holds pairs of one kind only; give some of label 1 and some of label 0")
    return LabelledPairs([str(r[first]) for r in records], [str(r[second]) for r in records], labels_N)


def read_candidates(uri: str) -> Candidates:
    """Queries with what is to be put first and what is not. Raises UserError that names the record."""
    queries: dict[str, str] = {}
    candidates: dict[str, list[str]] = {}
    qrels: dict[str, dict[str, int]] = {}
    ids: dict[str, str] = {}
    for number, record in enumerate(read_records(uri), 1):
        lists: list[Any] = [record.get(name) for name in ("positive", "negative")]
        if not isinstance(record.get("query"), str) or not all(map(_are_texts, lists)):
            raise UserError(f"{uri}, record {number}: needs query (a text), positive and negative (lists of texts)")
        query = f"q{number}"
        queries[query] = record["query"]
        for texts, grade in zip(lists, (1, 0), strict=True):
            for text in texts:
                document = ids.setdefault(text, f"d{len(ids) + 1}")
                if document not in qrels.setdefault(query, {}):
                    qrels[query][document] = grade
                    candidates.setdefault(query, []).append(document)
    return Candidates(queries, {document: text for text, document in ids.items()}, candidates, qrels)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def read_records(uri: str) -> list[dict[str, Any]]:
    """The records of a csv file with a header, or of jsonl. Raises UserError."""
    text = read_text(uri, _WANTED)
    if uri.removesuffix(".gz").endswith(".csv"):
        header, *rows = [row for row in csv_rows(text, uri) if row] or [[]]
        records: list[dict[str, Any]] = [dict(zip(header, row, strict=False)) for row in rows]
    else:
        records = [_object(line, f"{uri}, line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not records:
        raise UserError(f"{uri} holds no records; give a csv file with a header, or jsonl")
    return records


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{place} is no JSON object; write one object a line")
    return value


def _column(uri: str, records: list[dict[str, Any]], names: Sequence[str]) -> str:
    found = [name for name in names if all(record.get(name) not in (None, "") for record in records)]
    if not found:
        raise UserError(f"{uri} has no column {names[0]} (or {', '.join(names[1:])}) that every record fills")
    return found[0]
