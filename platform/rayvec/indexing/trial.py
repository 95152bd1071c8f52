"""The first load of a file happens in a child process: a file that ends FAISS ends the child, and not a server.

    python -m rayvec.indexing.trial FILE ROWS DIM [FILE ROWS DIM …]

loads each file as `Shard.read` does, searches one query, and prints the file's number when all is well. What passed is
remembered in this process by inode, size, time and checksum, so that a file is tried once, whatever versions share it.
A file of plain vectors needs no child: it is a header and numbers, and the header is read here.

Knows how to start itself, and what a process can die of. Knows no Ray and no torch, so the child starts fast.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayvec.errors import VerificationError
from rayvec.indexing.versions import Seen, seen_as

#: The child's address space over the files' own size: what FAISS, numpy and the search of one query need.
SPARE_BYTES = 6 << 30
#: Seconds that loading may take: so many, and one for each 20 MB, which a slow disk reads.
LEAST_SECONDS = 120
BYTES_A_SECOND = 20_000_000
#: How FAISS begins a file of an IndexFlatIP: its name, dimensions, vectors, two numbers that mean nothing, whether it
#: is trained, the metric, and how many numbers follow.
PLAIN = struct.Struct("<4siqqq?iQ")

_passed: set[Seen] = set()


@dataclass(frozen=True)
class Candidate:
    """A file to be tried: the rows and dimensions it should hold, and its checksum, verified before. No rows: a PCA."""

    path: Path
    rows: int
    dim: int
    sha256: str

    @property
    def key(self) -> Seen | None:
        """What a file is remembered by; None where there is none."""
        return seen_as(self.path, self.sha256)

    @property
    def is_plain(self) -> bool:
        """Whether the file is a flat index of so many vectors and nothing else, to the byte."""
        with self.path.open("rb") as stream:
            found = stream.read(PLAIN.size)
        if len(found) < PLAIN.size or self.path.stat().st_size != PLAIN.size + 4 * self.rows * self.dim:
            return False
        kind, dim, rows, _, _, trained, metric, values = PLAIN.unpack(found)
        inner_product = 0
        return (kind, dim, rows, trained, metric, values) == (
            *(b"IxFI", self.dim, self.rows, True, inner_product),
            self.rows * self.dim,
        )


def candidates(folder: Path, manifest: Mapping[str, Any], transform: str) -> list[Candidate]:
    """The files of a version that FAISS will read, as its manifest has them; transform: how a PCA's file is called."""
    files, dim = manifest["files"], int(manifest["dim_index"])
    found = [
        Candidate(folder / entry["file"], int(entry["rows"]), dim, str(files[entry["file"]]["sha256"]))
        for entry in manifest["shards"]
    ]
    if manifest["transform"]:
        found.append(Candidate(folder / transform, 0, int(manifest["dim"]), str(files[transform]["sha256"])))
    return found


def run(candidates: Sequence[Candidate]) -> None:
    """Load the files that were not loaded before, in one child process.

    Raises VerificationError naming the first file that FAISS refuses, that is not what it should be, or that kills it.
    """
    new = [one for one in candidates if one.key not in _passed and not (one.rows and one.is_plain)]
    if not new:
        return
    done, said = _child(new)
    reached = said.split()
    for candidate, word in zip(new, reached, strict=False):
        assert word == str(candidate.path.stat().st_size), (word, candidate)
        if candidate.key is not None:
            _passed.add(candidate.key)
    if done.returncode == VerificationError.exit_status:
        raise VerificationError(done.stderr.strip().splitlines()[-1])
    if len(reached) < len(new):
        raise VerificationError(
            f"{new[len(reached)].path} ends the process that loads it ({_cause(done)}); restore it or build it again"
        )


def _child(new: Sequence[Candidate]) -> tuple[subprocess.CompletedProcess[str], str]:
    arguments = [str(word) for candidate in new for word in (candidate.path, candidate.rows, candidate.dim)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    total = sum(candidate.path.stat().st_size for candidate in new)
    command = [sys.executable, "-P", "-m", "rayvec.indexing.trial", *arguments]
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter and module)
            command,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LEAST_SECONDS + total / BYTES_A_SECOND,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return subprocess.CompletedProcess(command, -signal.SIGKILL, text, "it did not come to an end"), text
    return done, done.stdout


def _cause(done: subprocess.CompletedProcess[str]) -> str:
    last = (done.stderr.strip().splitlines() or [""])[-1][:200]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"{name}: {last}" if last else name
    return last or f"status {done.returncode}"


def main(arguments: Sequence[str]) -> int:
    """Try each file, and say its size when it passed. Returns the exit status."""
    words = iter(arguments)
    files = [(Path(path), int(rows), int(dim)) for path, rows, dim in zip(words, words, words, strict=True)]
    _limit(sum(path.stat().st_size for path, _, _ in files))
    try:
        for path, rows, dim in files:
            _load(path, rows, dim)
            sys.stdout.write(f"{path.stat().st_size}\n")
            sys.stdout.flush()
    except VerificationError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


def _limit(total: int) -> None:
    """No core dumps, and no more memory than such files can need: a wild allocation fails here, and harms nobody."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = 3 * total + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _load(path: Path, rows: int, dim: int) -> None:
    import numpy as np

    from rayvec.indexing import pca, shards

    shards.use_threads(1)
    if not rows:
        projection = pca.load(path, normalize=True)
        if projection.dim_in != dim:
            raise VerificationError(f"{path} takes {projection.dim_in} dimensions where its manifest says {dim}")
        projection(np.ones((1, dim), np.float32))
        return
    shard = shards.Shard.read(path, start=0, rows=rows, dim=dim)
    query = np.full((1, dim), dim**-0.5, np.float32)
    found = shard.search(query, 10, shard.effort(max(1, shard.most_effort), 4))
    if not ((found.rows >= 0) & (found.rows < rows)).all() or not np.isfinite(found.scores).all():
        raise VerificationError(f"{path} finds rows that it does not hold; restore it or build it again")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
