"""The images: linted, not root, of the Makefile's and the package's versions, and no more copied than is let in."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import rayvec

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "infra" / "docker").glob("Dockerfile.*"))
LAUNCHER = sorted((ROOT / "infra" / "launcher").glob("*.yaml"))


def tool(name: str) -> str:
    """A program of this environment. Skips with the reason where it is not."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `make setup` installs it")
    return found


def stages(file: Path) -> list[list[str]]:
    """The instructions of each stage, one a string, continuation lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", file.read_text(encoding="utf-8")).replace("\\\n", " ")
    found: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            found.append([])
        found[-1].append(line)
    return found[1:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    result = subprocess.run([tool("hadolint"), str(file)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_scripts_pass_shellcheck() -> None:
    scripts = [ROOT / ".ci" / "run", *ROOT.glob("infra/**/*.sh")]
    result = subprocess.run([tool("shellcheck"), "-s", "bash", *map(str, scripts)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_runs_is_not_root_and_has_no_build_tools(file: Path) -> None:
    *_, build, run = stages(file)
    users = [line for line in run if line.startswith("USER ")]
    assert users == ["USER 1000"]
    after = run[run.index("USER 1000") :]
    assert not any(line.startswith(("RUN", "COPY", "ADD")) for line in after)
    assert not any("pip install" in line or "devel" in line for line in run)
    assert any(line.startswith("HEALTHCHECK") for line in run)
    assert any("pip check" in line for line in build)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_versions_are_pinned_and_ours(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    (torch,) = re.findall(r"(?m)^TORCH  := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert f" torch=={torch}" in text
    assert f'org.opencontainers.image.version="{rayvec.__version__}"' in text
    for base in re.findall(r"(?m)^ARG (?:BASE|CUDA)=(\S+)$", text):
        assert re.fullmatch(r"[\w/.-]+:\d+\.\d+\.\d+[\w.-]*", base), f"{base}: name a patch version"


def test_all_images_run_one_python() -> None:
    """Ray's nodes refuse a head of another Python, to the patch version."""
    pythons = set()
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        pythons |= set(re.findall(r"(?m)^ARG BASE=(\S+)$", text))
        assert stages(file)[-1][0] == "FROM ${BASE}"
        assert not re.search(r"install\b.*\bpython3", text.replace("\\\n", " ")), f"{file.name}: another Python"
    assert len(pythons) == 1 and pythons.pop().startswith("python:")


def test_the_launchers_image_has_what_rays_launcher_needs() -> None:
    """It copies files into the container by rsync, starts workers from the head by ssh, and mounts below HOME."""
    images = {yaml.safe_load(file.read_text(encoding="utf-8"))["docker"]["image"] for file in LAUNCHER}
    assert {image.rpartition("-")[2] for image in images} == {"cuda"}
    build, run = stages(ROOT / "infra" / "docker" / "Dockerfile.cuda")[-2:]
    assert any(line.startswith("RUN") and "openssh-client" in line and "rsync" in line for line in run)
    assert any("HOME=/home/rayvec" in line for line in run if line.startswith("ENV"))
    assert 'ARG EXTRAS="s3,gcs"' in build


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_is_there_and_let_into_the_context(file: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for stage in stages(file):
        for line in stage:
            if line.startswith("COPY ") and "--from=" not in line:
                for source in line.split()[1:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(source == entry or fnmatch.fnmatch(source, f"{entry}/*") for entry in let_in), source


def test_the_context_holds_no_work_of_a_checkout() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert not {"!.git", "!.venv", "!runs", "!tests"} & set(lines)
