"""pydocs: the Python environment this runs in, as a corpus. One document a documented module, class or function.

Reads source files and parses them; never imports them. Covers the standard library and every installed distribution.
Knows nothing of units, models or Ray.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import multiprocessing
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

import pyarrow as pa

from rayvec.errors import UserError

#: Folders whose docstrings describe tests and vendored copies rather than the library.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "vendored", "idle_test", "site-packages", "lib2to3"}
)
MIN_CHARACTERS = 40
STANDARD_LIBRARY = "python"

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("package", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int32(), nullable=False),
    ]
)
PAYLOAD = ["package", "version", "kind", "file", "line"]

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceFile:
    """A Python file of the environment: where it lies, what it is called, whom it belongs to."""

    path: Path
    relative: str
    module: str
    package: str
    version: str


@dataclass(frozen=True)
class Document:
    """One docstring with its signature and where it stands."""

    id: str
    title: str
    text: str
    package: str
    version: str
    kind: str
    file: str
    line: int


def collect(packages: Sequence[str] | None = None, min_characters: int = MIN_CHARACTERS, workers: int = 1) -> pa.Table:
    """The corpus as a table with `SCHEMA`, sorted by id, ids unique, texts unique.

    packages: names of distributions, `python` for the standard library; None takes all that is installed.
    min_characters: docstrings shorter than this are left out.
    workers: processes that parse; the result does not depend on it.

    Raises UserError when a named package is not installed.
    """
    files = sorted(source_files(packages), key=lambda file: file.relative)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(parse_file, files, chunksize=64))
    else:
        found = [parse_file(file) for file in files]
    documents = (document for batch in found for document in batch if len(document.text) >= min_characters)
    return pa.Table.from_pylist([asdict(document) for document in deduplicate(documents)], schema=SCHEMA)


def _distributions() -> dict[str, metadata.Distribution]:
    return {_normalize(dist.metadata["Name"]): dist for dist in metadata.distributions() if dist.metadata["Name"]}


def source_files(packages: Sequence[str] | None = None) -> Iterator[SourceFile]:
    """The Python files of the standard library and of the installed distributions, each once."""
    wanted = None if packages is None else {_normalize(name) for name in packages}
    distributions = _distributions()
    if wanted is not None and (unknown := wanted - distributions.keys() - {STANDARD_LIBRARY}):
        raise UserError(f"not installed here: {', '.join(sorted(unknown))}; `pip list` names what is, or use `python`")
    if wanted is None or STANDARD_LIBRARY in wanted:
        yield from _standard_library()
    for name in sorted(distributions):
        if wanted is None or name in wanted:
            yield from _distribution(name, distributions[name])


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _standard_library() -> Iterator[SourceFile]:
    root = Path(sysconfig.get_path("stdlib"))
    version = sysconfig.get_python_version()
    for path in sorted(root.rglob("*.py")):
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if _is_library_code(relative):
            yield SourceFile(path, str(relative), _module_name(relative), STANDARD_LIBRARY, version)


def _distribution(name: str, dist: metadata.Distribution) -> Iterator[SourceFile]:
    for file in dist.files or ():
        relative = PurePosixPath(file.as_posix())
        if relative.suffix == ".py" and relative.parts[0] != ".." and _is_library_code(relative):
            yield SourceFile(Path(str(file.locate())), str(relative), _module_name(relative), name, dist.version)


def _is_library_code(relative: PurePosixPath) -> bool:
    return SKIPPED_FOLDERS.isdisjoint(relative.parts) and all(
        part.removesuffix(".py").isidentifier() for part in relative.parts
    )


def _module_name(relative: PurePosixPath) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def parse_file(file: SourceFile) -> list[Document]:
    """The documents of one file; none when it cannot be read or parsed (templates, Python 2)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    documents = [_document(file, file.module, "module", f"module {file.module}", tree, 1)]
    documents += [_definition(file, qualified, node) for qualified, node in _definitions(tree, file.module)]
    return [document for document in documents if document is not None]


def _definitions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Classes and functions in reading order with their qualified names; what is local to a function is left out."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Definition):
            qualified = f"{prefix}.{node.name}"
            yield qualified, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, qualified)
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node, prefix)


def _definition(file: SourceFile, qualified: str, node: Definition) -> Document | None:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return _document(file, qualified, "class", f"class {qualified}({bases})", node, node.lineno)
    is_method = "." in qualified.removeprefix(f"{file.module}.")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    title = f"{qualified}({ast.unparse(node.args)}){returns}"
    return _document(file, qualified, "method" if is_method else "function", title, node, node.lineno)


def _document(
    file: SourceFile, qualified: str, kind: str, title: str, node: ast.Module | Definition, line: int
) -> Document | None:
    docstring = ast.get_docstring(node, clean=False)
    if not docstring:
        return None
    # Lone surrogates ("\ud800" written in a docstring) are no text: UTF-8 cannot hold them.
    text, title = (s.encode("utf-8", "replace").decode() for s in (inspect.cleandoc(docstring).strip(), title))
    if not text:
        return None
    return Document(qualified, title.removesuffix("()"), text, file.package, file.version, kind, file.relative, line)


def deduplicate(documents: Iterable[Document]) -> list[Document]:
    """One document an id and one a text, sorted by id; of equal texts the most public and shortest name stays."""
    by_id: dict[str, Document] = {}
    for document in documents:
        by_id.setdefault(document.id, document)
    by_text: dict[bytes, Document] = {}
    for document in sorted(by_id.values(), key=_publicity):
        by_text.setdefault(hashlib.sha256(document.text.encode()).digest(), document)
    return sorted(by_text.values(), key=lambda document: document.id)


def _publicity(document: Document) -> tuple[int, int, str]:
    parts = document.id.split(".")
    return sum(part.startswith("_") for part in parts), len(parts), document.id
