"""What is released: a wheel and a source archive that hold what they should, and work without the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import rayvec

pytest.importorskip("build", reason="build is not installed; `make setup` installs it")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    made = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return folder


def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_its_assets_only(built: Path) -> None:
    assert wheel(built).name == f"rayvec-{rayvec.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel(built)).namelist()
    assert {name.partition("/")[0] for name in names} == {"rayvec", f"rayvec-{rayvec.__version__}.dist-info"}
    package = ROOT / "platform" / "rayvec"
    ours = {
        f"rayvec/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_archive_holds_its_sources_and_no_work(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = [name.partition("/")[2] for name in opened.getnames()]
    assert {"pyproject.toml", "README.md", "LICENSE", "platform/rayvec/__init__.py"} <= set(names)
    assert not [name for name in names if name.startswith((".venv", "runs/", ".git/"))]


def test_jobs_and_recipes_work_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """As on a node that has the wheel, with `--working-dir` of a checkout that has no platform/."""
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel(built)),
    ]
    subprocess.run(install, check=True, capture_output=True)
    here = tmp_path / "work"
    here.mkdir()
    for name in ("jobs", "pipelines", "infra"):
        (here / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    code = (
        "import rayvec; from rayvec import TextEncoder; print(rayvec.__file__); "
        "print(TextEncoder.load('tiny').encode(['a text']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(target / "rayvec" / "__init__.py"), "(1,", "256)"]
    for job, recipe in (("embed", "tiny.embed"), ("index", "hash.index"), ("llm2vec", "llama3_8b.line")):
        command = [sys.executable, f"jobs/{job}.py", "--recipe", recipe, "--dry-run"]
        dry = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr[-2000:]


def test_the_version_has_its_place_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## \[(.+?)\]", text)[0] in ("Unreleased", rayvec.__version__)


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {
        _name(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    wanted = {_name(re.split(r"[\[<>=~!; ]", one)[0]) for one in project["dependencies"]}
    assert wanted <= pins


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text.strip()).lower()


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        ('echo "{}" > "$report"; exit 0', 0, ""),
        ('echo "{}" > "$report"; exit 1', 2, "vulnerabilities, see dist/audit.json"),
        ("exit 1", 0, "could not ask its database"),
    ],
    ids=["nothing is found", "something is found", "nobody answers"],
)
def test_a_vulnerability_fails_the_audit_and_a_missing_network_does_not(
    tmp_path: Path, script: str, status: int, told: str
) -> None:
    """Around pip-audit, of which here there is the exit status and the report alone: its database is far away."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "audit-ignore.txt").write_text("# why\nPYSEC-1  # not reached\n\nCVE-2 # a reason\n")
    command = tmp_path / "pip-audit"
    command.write_text(
        '#!/bin/bash\n[[ "$*" == *" --ignore-vuln PYSEC-1 --ignore-vuln CVE-2" ]] || exit 9\n'
        f"report=dist/audit.json\n{script}\n"
    )
    command.chmod(0o755)
    made = subprocess.run(["make", "audit", f"BIN={tmp_path}"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == status, made.stdout + made.stderr
    assert told in made.stdout


def test_every_vulnerability_that_is_let_pass_has_its_reason() -> None:
    lines = (ROOT / "infra" / "audit-ignore.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not re.fullmatch(r"([A-Z][\w-]+ +)?# .+", line)] == []


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_clean_environment_takes_the_wheel_with_all_it_needs(built: Path, tmp_path: Path) -> None:
    """The pinned versions install beside each other, agree, and the line's cheapest jobs run."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    # With the checkout on the path pip would find rayvec there, and leave the wheel out.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (torch,) = re.findall(r"(?m)^TORCH  := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for what in ([f"torch=={torch}"], ["-c", str(ROOT / "constraints.txt"), str(wheel(built))]):
        install = [python, "-m", "pip", "install", "--quiet", *what]
        done = subprocess.run(install, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    subprocess.run([python, "-m", "pip", "check"], env=environment, check=True)
    for name in ("jobs", "pipelines", "infra"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs.jsonl").write_text("".join(f'{{"id": "d{i}", "text": "text {i}"}}\n' for i in range(50)))
    settings = ["--set", "corpus.path=docs.jsonl", "--set", "output=line"]
    line = subprocess.run(
        [python, "-m", "jobs.llm2vec", "--recipe", "hash.line", *settings],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert line.returncode == 0, line.stdout[-2000:] + line.stderr[-2000:]
    assert (tmp_path / "line" / "serve.yaml").is_file()
