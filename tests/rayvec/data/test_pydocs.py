"""pydocs: documents out of source files, parsed and never imported."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

import pytest

from rayvec.data import pydocs
from rayvec.data.pydocs import Document, SourceFile, collect, deduplicate, parse_file
from rayvec.errors import UserError

CODE = '''
"""A module about joining."""
import does_not_exist_anywhere

def join(a: str, *parts, sep="/") -> str:
    """Join parts with a separator."""
    def local():
        """Not a document of its own."""

class Path(object):
    """A path of the file system."""

    @property
    def name(self):
        """The last part."""

    def bare(self): ...

if True:
    async def fetch(url):
        """Fetch a page."""
'''


@pytest.fixture
def documents(tmp_path: Path) -> list[Document]:
    path = tmp_path / "m.py"
    path.write_text(CODE)
    return parse_file(SourceFile(path, "pkg/m.py", "pkg.m", "pkg", "1.0"))


def test_one_document_for_each_documented_thing(documents: list[Document]) -> None:
    assert [d.id for d in documents] == ["pkg.m", "pkg.m.join", "pkg.m.Path", "pkg.m.Path.name", "pkg.m.fetch"]


def test_the_title_is_the_signature(documents: list[Document]) -> None:
    assert documents[1].title == "pkg.m.join(a: str, *parts, sep='/') -> str"


def test_kinds(documents: list[Document]) -> None:
    assert [d.kind for d in documents] == ["module", "function", "class", "method", "function"]


def test_the_line_is_where_the_definition_starts(documents: list[Document]) -> None:
    assert CODE.splitlines()[documents[1].line - 1].startswith("def join")


@pytest.mark.parametrize("content", [b"def f(:", b"\xff\xfe", b"print 1", b"\0"])
def test_a_file_that_does_not_parse_gives_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.py").write_bytes(content)
    assert parse_file(SourceFile(tmp_path / "bad.py", "bad.py", "bad", "p", "1")) == []


def test_equal_texts_keep_the_most_public_name() -> None:
    def document(name: str) -> Document:
        return Document(name, name, "the same text", "p", "1", "function", "f.py", 1)

    assert [d.id for d in deduplicate([document("p._impl.f"), document("p.f"), document("p.sub.f")])] == ["p.f"]


def test_a_lone_surrogate_in_a_docstring_becomes_text(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text('"""a lone \\ud800 surrogate"""')
    (document,) = parse_file(SourceFile(path, "m.py", "m", "p", "1"))
    document.text.encode("utf-8")


def test_the_standard_library_gives_thousands() -> None:
    table = collect(["python"])
    assert table.schema == pydocs.SCHEMA
    assert table.num_rows > 3000
    ids = table["id"].to_pylist()
    assert ids == sorted(set(ids))
    assert "json.loads" in ids


def test_the_result_does_not_depend_on_the_workers() -> None:
    assert collect(["pyarrow"], workers=2) == collect(["PyArrow"], workers=1)


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    collect(["click"])
    assert "click.testing" not in set(sys.modules) - before


def test_an_unknown_package_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no-such-package"):
        collect(["no_such_package"])


def test_files_are_relative_to_the_environment() -> None:
    assert all(not Path(f).is_absolute() for f in collect(["click"])["file"].to_pylist())


def test_line_points_into_the_file() -> None:
    row = next(r for r in collect(["python"]).to_pylist() if r["id"] == "textwrap.dedent")
    tree = ast.parse(Path(textwrap.__file__).read_text())
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "dedent")
    assert row["line"] == node.lineno
