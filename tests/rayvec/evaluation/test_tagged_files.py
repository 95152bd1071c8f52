from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from rayvec.errors import UserError
from rayvec.evaluation.tagged_files import Sentence, load_split, read_tagged

COLUMNS = "-DOCSTART- -X- O\n\nthe DT B-NP\npound NN I-NP\n\n\nfell VBD B-VP\r\n"


def test_columns_are_words_and_tags_and_blank_lines_end_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_bytes(COLUMNS.encode())
    found = read_tagged(str(tmp_path / "a.conll"))
    assert found == [Sentence(("the", "pound"), ("B-NP", "I-NP")), Sentence(("fell",), ("B-VP",))]


@pytest.mark.parametrize(("column", "tag"), [(1, "DT"), (2, "B-NP"), (-2, "DT")])
def test_another_column_may_be_the_tag(tmp_path: Path, column: int, tag: str) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(COLUMNS.encode()))
    assert read_tagged(str(tmp_path / "a.txt.gz"), column)[0].tags[0] == tag


def test_tabs_part_columns_and_only_line_feeds_end_lines(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_bytes("New York\tB\nodd\u2028\u0085word\tO\n".encode())
    assert read_tagged(str(tmp_path / "a.conll")) == [Sentence(("New York", "odd\u2028\u0085word"), ("B", "O"))]


def test_a_language_before_every_word_is_left_off(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("en:R.H.\tB-ORG\nen:en:x\tO\n")
    (tmp_path / "b.conll").write_text("en:R.H.\tB-ORG\nplain\tO\n")
    assert read_tagged(str(tmp_path / "a.conll"))[0].words == ("R.H.", "en:x")
    assert read_tagged(str(tmp_path / "b.conll"))[0].words == ("en:R.H.", "plain")


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a O\nb\n", -1, r"a.conll, line 2: 1 columns, and tag_column = -1 is none of those after the word"),
        ("a O\n", 2, r"line 1: 2 columns, and tag_column = 2"),
        ("a O\n", -2, r"line 1: 2 columns, and tag_column = -2"),
        ("\n\n", -1, "holds no tagged words"),
        ("\xff", -1, "cannot be read as text in UTF-8"),
    ],
)
def test_what_is_not_tagged_is_refused(tmp_path: Path, text: str, column: int, message: str) -> None:
    (tmp_path / "a.conll").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_tagged(str(tmp_path / "a.conll"), column)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.conll does not exist"):
        read_tagged(str(tmp_path / "none.conll"))
    with pytest.raises(UserError, match="train is required"):
        load_split("")


def test_two_files_are_the_two_sides(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a X\n")
    (tmp_path / "b").write_text("b Y\n")
    assert load_split(str(tmp_path / "a"), str(tmp_path / "b")).test == [Sentence(("b",), ("Y",))]


def zipped(path: Path, members: dict[str, str]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return str(path)


def test_a_zip_of_train_and_test_is_both_sides(tmp_path: Path) -> None:
    uri = zipped(tmp_path / "c.zip", {"c/README": "x", "c/train.txt": "a DT B-NP\n", "c/test.txt": "b NN I-NP\n"})
    assert load_split(uri) == ([Sentence(("a",), ("B-NP",))], [Sentence(("b",), ("I-NP",))])
    assert load_split(uri, tag_column=1).train[0].tags == ("DT",)
    with pytest.raises(UserError, match="give it as train, and no test"):
        load_split(uri, uri)


def test_a_zip_of_words_with_tags_after_them(tmp_path: Path) -> None:
    text = "So_IN a_b_NN ,_,\n\nP. 5_CD .. broken\n"
    uri = zipped(
        tmp_path / "m.zip", {"m/categories.txt": "x.txt y", "m/spoken/x.txt": text, "m/written/x.txt": "I_PRP"}
    )
    assert read_tagged(uri) == [
        Sentence(("So", "a_b", ","), ("IN", "NN", ",")),
        Sentence(("P. 5",), ("CD",)),
        Sentence(("I",), ("PRP",)),
    ]


def test_one_file_is_split_by_a_hash_of_the_words(tmp_path: Path) -> None:
    sentences = [f"word{i % 150} X\n\n" for i in range(300)]  # each one twice
    (tmp_path / "a").write_text("".join(sentences))
    (tmp_path / "b").write_text("".join(sorted(sentences)))
    train, test = load_split(str(tmp_path / "a"))
    assert len(train) + len(test) == 300
    assert 30 < len(test) < 90  # a fifth is 60
    assert not set(train) & set(test)
    assert set(load_split(str(tmp_path / "b")).test) == set(test)


def test_too_few_sentences_to_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one X\n")
    with pytest.raises(UserError, match="too few to keep some for testing; give test too"):
        load_split(str(tmp_path / "a"))


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no .txt files of word_TAG lines"):
        read_tagged(zipped(tmp_path / "o.zip", {"a.txt": "no tags here", "b.csv": "a_X"}))
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(UserError, match="is not a zip file"):
        read_tagged(str(tmp_path / "bad.zip"))
