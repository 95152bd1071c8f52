"""Files that end the process which loads them: damage that a checksum would not tell, and what becomes of it."""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rayvec.errors import VerificationError
from rayvec.indexing import drafts, pca, shards, spec, trial, versions
from rayvec.indexing.layers import faiss
from rayvec.indexing.searcher import Index
from rayvec.indexing.trial import Candidate
from tests.artifacts import random_vectors, texts_for, write_index

COUNT, DIM = 500, 16
VECTORS = random_vectors(COUNT, DIM)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph over lists: the kind with most numbers that FAISS trusts."""
    path = tmp_path_factory.mktemp("trial") / "good.faiss"
    chosen = spec.choose("IVF8_HNSW4,SQ8,Refine(SQ8)", COUNT, DIM)
    shards.fill(shards.train(chosen, DIM, VECTORS, seed=0), [VECTORS], path)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trial") / "graph.faiss"
    shards.fill(shards.train(spec.choose("HNSW4", COUNT, DIM), DIM, VECTORS, seed=0), [VECTORS], path)
    return path


def candidate(path: Path, rows: int = COUNT, dim: int = DIM, sha256: str = "") -> Candidate:
    return Candidate(path, rows, dim, sha256 or path.read_bytes().hex()[:64])


def test_a_good_file_passes_and_is_tried_once(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.run([candidate(good)])
    monkeypatch.setattr(sys, "executable", "/nowhere")
    trial.run([candidate(good)])
    with pytest.raises(FileNotFoundError):
        trial.run([candidate(good, sha256="another")])


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one byte of its header changed, which ends plain FAISS with a signal.

    Found by changing bytes at random: FAISS checks most numbers, but not those of a RaBitQ code. The highest bytes
    of a number are tried first: what is read for one a little too large may lie in memory that happens to be there.
    """
    folder = tmp_path_factory.mktemp("deadly")
    chosen = spec.choose("RaBitQ4", COUNT, DIM)
    shards.fill(shards.train(chosen, DIM, VECTORS, seed=0), [VECTORS], folder / "whole")
    data = (folder / "whole").read_bytes()
    bad = folder / "bad.faiss"
    for position, value in itertools.product(range(52, 40, -1), (1, 127, 255)):
        bad.write_bytes(data[:position] + bytes([value]) + data[position + 1 :])
        if all(_plain_faiss(bad) < 0 for _ in range(3)):
            return bad
    raise AssertionError("FAISS survives every one of these files; find others")


def _plain_faiss(path: Path) -> int:
    """The status of a process that reads and searches a file; a fork, so that many of them take no time."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            index.search(VECTORS[:1], 10)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_a_file_that_kills_plain_faiss_is_refused_by_name(deadly: Path) -> None:
    with pytest.raises(VerificationError, match=r"bad\.faiss ends the process that loads it \(SIG"):
        trial.run([candidate(deadly)])


def test_the_file_that_crashes_is_named_and_not_those_before_it(good: Path, deadly: Path, graph: Path) -> None:
    with pytest.raises(VerificationError, match=r"bad\.faiss ends the process"):
        trial.run([candidate(good, sha256="again"), candidate(deadly, sha256="again"), candidate(graph)])


def test_flipped_bytes_of_headers_never_end_this_process(good: Path, graph: Path, tmp_path: Path) -> None:
    """Random damage: what is refused is refused by name, what FAISS cannot tell from data still answers."""
    generator = random.Random(3)
    refused = 0
    for number in range(8):
        source = (good, graph)[number % 2]
        data = bytearray(source.read_bytes())
        for _ in range(4):
            data[generator.randrange(4, 400)] = generator.randrange(256)
        bad = tmp_path / f"{number}.faiss"
        bad.write_bytes(data)
        try:
            trial.run([candidate(bad, sha256=str(number))])
        except VerificationError as error:
            refused += 1
            assert bad.name in str(error)
    assert refused >= 4


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(good: Path, tmp_path: Path, share: float) -> None:
    bad = tmp_path / "short.faiss"
    bad.write_bytes(good.read_bytes()[: int(good.stat().st_size * share)])
    with pytest.raises(VerificationError, match=r"short\.faiss"):
        trial.run([candidate(bad, sha256=str(share))])


def test_a_binary_index_is_refused_by_name(tmp_path: Path) -> None:
    index = faiss.IndexBinaryFlat(64)
    index.add(np.zeros((COUNT, 8), np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "binary.faiss"))
    with pytest.raises(VerificationError, match=r"binary\.faiss is not a FAISS index of a kind"):
        trial.run([candidate(tmp_path / "binary.faiss")])


@pytest.mark.parametrize(("rows", "dim"), [(COUNT + 1, DIM), (COUNT, DIM * 2)])
def test_a_file_that_is_not_what_its_manifest_says_is_refused(good: Path, rows: int, dim: int) -> None:
    with pytest.raises(VerificationError, match=rf"good\.faiss holds {COUNT} vectors of {DIM}"):
        trial.run([candidate(good, rows, dim, sha256=f"{rows}x{dim}")])


def test_a_rotation_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    pca.save(pca.fit(pca.moments([VECTORS]), 4, normalize=True), tmp_path / "transform.faiss")
    trial.run([candidate(tmp_path / "transform.faiss", rows=0)])
    with pytest.raises(VerificationError, match="takes 16 dimensions"):
        trial.run([candidate(tmp_path / "transform.faiss", rows=0, dim=8, sha256="other")])


def test_an_index_with_a_crashing_file_of_a_right_checksum_does_not_open(deadly: Path, tmp_path: Path) -> None:
    write_index(tmp_path, VECTORS, texts_for(COUNT), factory="RaBitQ4")
    with drafts.new_version(tmp_path) as draft:
        facts = versions.read_manifest(tmp_path / "versions" / "v1")
        shutil.copytree(tmp_path / "versions" / "v1", draft.folder, dirs_exist_ok=True)
        (draft.folder / versions.MANIFEST).unlink()
        shutil.copy(deadly, draft.folder / "shard-00000.faiss")
        kept = {key: value for key, value in facts.items() if key not in ("format", "version", "files", versions.SEAL)}
        draft.commit(kept)
    with pytest.raises(VerificationError, match=r"shard-00000\.faiss ends the process"):
        Index.open(tmp_path)


def test_the_child_loads_neither_ray_nor_torch() -> None:
    code = "import sys, rayvec.indexing.trial, rayvec.indexing.shards; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
