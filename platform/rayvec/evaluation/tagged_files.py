"""Tagged sentences from files: columns as in the CoNLL tasks, and two zips of nltk's data.

Columns: a word a line, the word first, its tags after it (parted by tabs, or by spaces), a blank line after each
sentence. conll2000.zip holds train.txt and test.txt in columns; masc_tagged.zip holds files of `word_TAG` lines, a
sentence a line. Knows files. Knows no encoder.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from rayvec import storage
from rayvec.data.pairs import is_held_out
from rayvec.errors import UserError
from rayvec.evaluation.text_files import decoded, read_text

#: The share of the sentences that is for testing, where a set comes in one piece.
TEST_SHARE = 0.2
_WANTED = "a file of tagged words (.conll, .txt, .gz or .zip)"
# Lines that begin a document in CoNLL-2003, and are no word.
_DOCUMENT = "-DOCSTART-"
# WikiANN writes the language before every word: en:Paris.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")


class Sentence(NamedTuple):
    """Words and their tags, one a word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Split(NamedTuple):
    """What a probe learns from, and what it is asked about."""

    train: list[Sentence]
    test: list[Sentence]


def load_split(train: str, test: str = "", tag_column: int = -1) -> Split:
    """The sentences of two files, or of one that holds both parts or is split by a hash of each sentence's words.

    So the same sentence is always on the same side. Raises UserError.
    """
    if not train:
        raise UserError("train is required; give a file of tagged words with --set train=FILE")
    if test:
        return Split(read_tagged(train, tag_column), read_tagged(test, tag_column))
    members = _members(train) if train.endswith(".zip") else {}
    if _is_divided(members):
        return Split(*(_columns(members[name], f"{train}!{name}", tag_column) for name in ("train.txt", "test.txt")))
    sentences = read_tagged(train, tag_column)
    parts: tuple[list[Sentence], list[Sentence]] = ([], [])
    for sentence in sentences:
        parts[is_held_out(" ".join(sentence.words), TEST_SHARE)].append(sentence)
    if not all(parts):
        raise UserError(f"{train} holds {len(sentences)} sentences, too few to keep some for testing; give test too")
    return Split(*parts)


def read_tagged(uri: str, tag_column: int = -1) -> list[Sentence]:
    """The tagged sentences of one file, gzipped or not, or of a zip of `word_TAG` files (where no column is chosen).

    Raises UserError that names the file and the line.
    """
    if not uri.endswith(".zip"):
        return _columns(read_text(uri, _WANTED), uri, tag_column)
    members = _members(uri)
    if _is_divided(members):
        raise UserError(f"{uri} holds train.txt and test.txt; give it as train, and no test")
    sentences = [sentence for text in members.values() for sentence in _underscored(text)]
    if not sentences:
        raise UserError(f"{uri} holds no .txt files of word_TAG lines; give such a zip, or a file of columns")
    return sentences


def _bytes(uri: str) -> bytes:
    if storage.size(uri) < 0:
        raise UserError(f"{uri} does not exist; give {_WANTED}")
    return storage.read_bytes(uri)


def _members(uri: str) -> dict[str, str]:
    """The .txt files of a zip by their names without folders where these are unique, sorted."""
    try:
        with zipfile.ZipFile(io.BytesIO(_bytes(uri))) as archive:
            names = sorted(n for n in archive.namelist() if n.endswith(".txt") and not n.endswith("/categories.txt"))
            texts = {name: decoded(archive.read(name), f"{uri}!{name}", _WANTED) for name in names}
    except zipfile.BadZipFile:
        raise UserError(f"{uri} is not a zip file; get it again") from None
    short = {PurePosixPath(name).name: text for name, text in texts.items()}
    return short if len(short) == len(texts) else texts


def _is_divided(members: dict[str, str]) -> bool:
    return {"train.txt", "test.txt"} <= set(members)


def _columns(text: str, name: str, tag_column: int) -> list[Sentence]:
    sentences = _without_language([s for s in _column_sentences(text, name, tag_column) if s.words[0] != _DOCUMENT])
    if not sentences:
        raise UserError(f"{name} holds no tagged words; write a word and its tag a line")
    return sentences


def _column_sentences(text: str, name: str, tag_column: int) -> Iterator[Sentence]:
    rows: list[Sequence[str]] = []
    # Only line feeds end lines: str.splitlines would part words that hold rarer signs.
    for number, line in enumerate([*text.split("\n"), ""], 1):
        row = line.strip(" \r")
        if row:
            columns = row.split("\t") if "\t" in row else row.split(" ")
            rows.append(_word_and_tag([c for c in columns if c], f"{name}, line {number}", tag_column))
        elif rows:
            words, tags = zip(*rows, strict=True)
            yield Sentence(words, tags)
            rows = []


def _word_and_tag(columns: list[str], place: str, tag_column: int) -> tuple[str, str]:
    tag = tag_column if tag_column >= 0 else len(columns) + tag_column
    if len(columns) < 2 or not 0 < tag < len(columns):
        raise UserError(
            f"{place}: {len(columns)} columns, and tag_column = {tag_column} is none of those after the word; "
            "choose another with --set tag_column=…"
        )
    return columns[0], columns[tag]


def _without_language(sentences: list[Sentence]) -> list[Sentence]:
    """The sentences without what WikiANN writes before every single word; others as they are."""
    found = _LANGUAGE.match(sentences[0].words[0]) if sentences else None
    prefix = found[0] if found else ""
    if not prefix or not all(word.startswith(prefix) for sentence in sentences for word in sentence.words):
        return sentences
    return [Sentence(tuple(word.removeprefix(prefix) for word in s.words), s.tags) for s in sentences]


def _underscored(text: str) -> Iterator[Sentence]:
    """Sentences of `word_TAG word_TAG …` lines.

    A piece without a tag begins a word with spaces (`P. 5_CD`); at a line's end it is left out (a broken address).
    """
    for line in text.split("\n"):
        rows: list[tuple[str, str]] = []
        begun = ""
        for piece in line.split():
            word, underscore, tag = (begun + piece).rpartition("_")
            tagged = bool(underscore and word and tag)
            begun = "" if tagged else f"{begun}{piece} "
            if tagged:
                rows.append((word, tag))
        if rows:
            words, tags = zip(*rows, strict=True)
            yield Sentence(words, tags)
