"""Every command of the docs: parsed and its jobs resolved in `make test`, run as it stands in `make nightly`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from pipelines._ray import worker_environment
from tests.clusters import Head, free_port, head, uv_takes_this_environment
from tests.docs.blocks import FILES, ROOT, Block, blocks

ALL = [(file, block) for file in FILES for block in blocks(file)]
IDS = [block.where for _, block in ALL]


@pytest.mark.parametrize(("file", "block"), ALL, ids=IDS)
def test_a_block_is_well_formed(file: Path, block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.where, "exec")
    else:
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("file", "block"), [pair for pair in ALL if pair[1].jobs], ids=[b.where for _, b in ALL if b.jobs]
)
def test_the_jobs_of_a_block_resolve(file: Path, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes and settings exist and fit; options that stand instead of a recipe exist."""
    monkeypatch.chdir(tmp_path)
    for name, arguments in block.jobs:
        command: click.Command = importlib.import_module(f"jobs.{name}").command
        if {"--recipe", "--set", "--config"} & set(arguments) and not any(a == "--config" for a in arguments):
            if name != "doctor":
                kept = [argument for argument in arguments if argument != "--dry-run"]
                result = CliRunner().invoke(command, [*kept, "--dry-run"])
                assert result.exit_code == 0, f"{name} {arguments}: {result.output} {result.exception}"
        else:
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert {word for word in arguments if word.startswith("--")} <= known, f"{name} {arguments}"


def test_links_lead_somewhere() -> None:
    for file in FILES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
            if anchor:
                headings = re.findall(r"(?m)^#+ (.+)$", (file.parent / target).read_text(encoding="utf-8"))
                assert anchor[1:] in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head(PYTHONPATH=worker_environment()["PYTHONPATH"], **uv_takes_this_environment()) as started:
        yield started


def write_corpus(folder: Path) -> None:
    """What the blocks' files stand for: documents, pairs, ids to delete, queries with judgements."""
    words = ["join", "path", "parse", "date", "sort", "list", "read", "table", "graph", "node"]
    texts = [
        f"{words[i % 10]} {words[(i * 3 + 1) % 10]} number {i}: what it does and why. More of it follows."
        for i in range(1200)
    ]
    lines = "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    for place in (folder / "corpus.jsonl", folder / "docs" / "a.jsonl", folder / "shared" / "docs" / "a.jsonl"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(lines)
    (folder / "more.jsonl").write_text(
        "".join(json.dumps({"id": f"n{i}", "text": f"new {i}"}) + "\n" for i in range(20))
    )
    long = (" ".join(texts[i * 8 : i * 8 + 8]) for i in range(100))
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(long))
    )
    (folder / "gone.txt").write_text("d0\nd1\n")
    pairs = "".join(json.dumps({"query": text[:24], "positive": text}) + "\n" for text in texts)
    (folder / "pairs.jsonl").write_text(pairs)
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"id": f"q{i}", "text": texts[i][:24]}) + "\n" for i in range(40))
    )
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(40))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    task = folder / "beir"
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text(lines.replace('"id"', '"_id"'))
    (task / "queries.jsonl").write_text((folder / "queries.jsonl").read_text().replace('"id"', '"_id"'))
    (task / "qrels" / "test.tsv").write_text((folder / "qrels.tsv").read_text())


@contextlib.contextmanager
def checkout(folder: Path) -> Iterator[Path]:
    """A folder that looks like a checkout, with a corpus, and none of this checkout's own runs."""
    for name in ("platform", "pipelines", "jobs", "infra"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    for name in (".gitignore", "pyproject.toml"):  # what is not uploaded with a working directory; uv's project
        shutil.copy(ROOT / name, folder)
    write_corpus(folder)
    yield folder
    shutil.rmtree(folder / "runs", ignore_errors=True)


def _wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert service.poll() is None, "the service ended by itself"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError("the service was not ready within two minutes")


@pytest.mark.nightly
@pytest.mark.cluster
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_blocks_of_a_file_run(file: Path, cluster: Head, tmp_path: Path) -> None:
    """In order, in one folder, with what the ones before left; ports are put in place of the docs' own."""
    ports = {
        **{port: free_port() for port in ("8000", "8001", "8002")},
        "8265": int(cluster.dashboard.rpartition(":")[2]),
    }
    base = {**cluster.environment, **worker_environment(), "PYTHONWARNINGS": "ignore"}
    with checkout(tmp_path) as here, contextlib.ExitStack() as ended:
        for block in blocks(file):
            text = re.sub("|".join(ports), lambda found: str(ports[found[0]]), block.text)
            for what in block.prepare:
                _prepare(what, here, {**base, "RAY_ADDRESS": cluster.gcs})
            if block.skip:
                continue
            submitting = {"RAY_API_SERVER_ADDRESS": cluster.dashboard}
            environment = base | (submitting if block.cluster else {"RAY_ADDRESS": cluster.gcs})
            for part in _parts(text) if block.serves else [text]:
                if "jobs.serve" in part:
                    _serve(part, here, base, ended)
                    continue
                shell = ["bash", "-euo", "pipefail", "-c"]
                command = [*([sys.executable, "-c"] if block.language == "python" else shell), part]
                done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=900)
                assert done.returncode == 0, f"{block.where}\n{part}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _parts(text: str) -> list[str]:
    """What comes before a service, the service, and what comes after."""
    return [part for part in re.split(r"(?m)^(python -m jobs\.serve.*)$", text) if part.strip()]


def _prepare(what: str, here: Path, environment: dict[str, str]) -> None:
    kind, family, corpus, folder = what.split()
    embeddings = folder if kind == "embeddings" else f"{folder}-embeddings"
    jobs = [("embed", f"source.path={corpus}", f"output={embeddings}")]
    jobs += [("index", f"embeddings={embeddings}", f"output={folder}")] if kind == "index" else []
    for name, *values in jobs:
        settings = [part for value in values for part in ("--set", value)]
        command = [sys.executable, "-m", f"jobs.{name}", "--recipe", f"{family}.{name}", *settings]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]


def _serve(command: str, here: Path, environment: dict[str, str], ended: contextlib.ExitStack) -> None:
    """Start the service of a block in a Ray of its own; ended with the file."""
    (port,) = re.findall(r"port=(\d+)", command)
    service = subprocess.Popen(
        ["bash", "-c", f"exec {command.partition('#')[0].strip()}"], cwd=here, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGTERM)
            service.wait(180)

    ended.callback(end)
    _wait_until_ready(f"http://127.0.0.1:{port}", service)
