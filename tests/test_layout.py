"""The house itself: what may lie where, and what importing costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "faiss", "deepspeed", "transformers", "fastapi")


def in_clean_process(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": "platform:.", "PATH": "/usr/bin:/bin"},
    )
    return result.stdout


def loaded_after(statement: str) -> list[str]:
    code = f"import sys, json; {statement}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    return json.loads(in_clean_process(code))


def test_platform_holds_nothing_but_packages() -> None:
    # A file directly in platform/ would replace the standard library's module of that name.
    files = [path.name for path in (ROOT / "platform").iterdir() if path.is_file()]
    assert files == []


def test_standard_library_platform_wins() -> None:
    assert "lib/python3" in in_clean_process("import platform; print(platform.__file__)")


def test_jobs_carry_no_library_names() -> None:
    # A submitted script's own folder comes first on the path, so jobs/queue.py would be `import queue` for everyone.
    names = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    assert not names & (set(sys.stdlib_module_names) | {"ray", "datasets", "evaluate", "torch", "faiss"})


def test_importing_rayvec_is_free() -> None:
    assert loaded_after("import rayvec") == []


def test_recipes_load_no_heavy_library() -> None:
    assert loaded_after("from pipelines.recipes import recipes; recipes()") == []


@pytest.mark.parametrize("job", sorted(p.stem for p in (ROOT / "jobs").glob("*.py") if not p.stem.startswith("_")))
def test_a_job_shows_its_help_without_heavy_libraries(job: str) -> None:
    assert loaded_after(f"import jobs.{job}") == []


def test_public_surface() -> None:
    import rayvec

    assert rayvec.__all__ == ["AsyncClient", "Client", "HashEncoder", "TextEncoder", "__version__"]


def test_nothing_unpickles() -> None:
    # torch.load needs weights_only; pickle, shelve and marshal have no place in files that others can write.
    offences = []
    for path in [*ROOT.glob("platform/**/*.py"), *ROOT.glob("pipelines/**/*.py"), *ROOT.glob("jobs/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"} & {n.split(".")[0] for n in names}:
                offences.append(str(path))
    assert offences == []


def test_every_source_file_says_what_it_holds() -> None:
    sources = [p for top in ("platform", "pipelines", "jobs") for p in (ROOT / top).rglob("*.py")]
    assert [str(p) for p in sources if not ast.get_docstring(ast.parse(p.read_text()))] == []
