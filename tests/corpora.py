"""Small corpora and encoders that misbehave on chosen words: what the tests of encoding are run on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines._ray import worker_environment
from rayvec.data.units import Rejected, Unit, UnitData, unit_name
from rayvec.encoding.work import Work
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.modeling.tokens import TokenBatch

REFUSED = "(refused)"
RAISES, NOT_FINITE, KILLS, EXITS = "raisesword", "nanword", "killsword", "exitsword"


@dataclass(frozen=True)
class ListSource:
    """A source of (id, text) pairs; the text "(refused)" stands for a record that cannot be read."""

    documents: Sequence[tuple[str, str]]

    def units(self, unit_rows: int) -> list[Unit]:
        starts = range(0, len(self.documents), unit_rows)
        return [
            Unit(
                name=unit_name(i, start),
                kind="list",
                uri="memory",
                start=start,
                stop=min(start + unit_rows, len(self.documents)),
                first=start,
                rows_estimate=unit_rows,
                input_bytes=0,
            )
            for i, start in enumerate(starts)
        ]

    def read(self, unit: Unit) -> UnitData:
        rows = [(i, *self.documents[i]) for i in range(unit.start, unit.stop)]
        good = [row for row in rows if row[2] != REFUSED]
        table = pa.table(
            {
                "id": pa.array([row[1] for row in good], pa.string()),
                "title": pa.array([None] * len(good), pa.string()),
                "text": pa.array([row[2] for row in good], pa.string()),
                "position": pa.array([row[0] for row in good], pa.int64()),
            }
        )
        return UnitData(table, [Rejected(i, None, "empty_text", id_) for i, id_, text in rows if text == REFUSED])


class MarkedEncoder(HashEncoder):
    """A HashEncoder that raises, gives NaN, or ends its process, when a text holds a marked word."""

    def encode_tokens(self, batch: TokenBatch) -> np.ndarray:
        found = {word: np.isin(batch.input_ids, self._words(word)) for word in (RAISES, NOT_FINITE, KILLS, EXITS)}
        if found[KILLS].any():
            os.kill(os.getpid(), signal.SIGKILL)
        if found[EXITS].any():
            sys.exit(0)
        if found[RAISES].any():
            raise ArithmeticError("marked")
        vectors_ND = super().encode_tokens(batch)
        rows = np.repeat(np.arange(len(batch)), batch.lengths)[found[NOT_FINITE]]
        vectors_ND[rows] = np.nan
        return vectors_ND


def marked(_: str) -> MarkedEncoder:
    """A loader, as Work takes one."""
    return MarkedEncoder(dim=16)


def documents(count: int, **special: str) -> list[tuple[str, str]]:
    """Documents of different lengths; `d3="text"` replaces the text of document 3."""
    texts = [f"document {i} " + " ".join(f"word{(i * 7 + j) % 50}" for j in range(i % 9)) for i in range(count)]
    return [(f"d{i}", special.get(f"d{i}", text)) for i, text in enumerate(texts)]


def work_on(output: Path | str, pairs: Sequence[tuple[str, str]], **options: Any) -> Work:
    """The work of embedding these documents with a MarkedEncoder."""
    return Work(ListSource(pairs), str(output), "marked", MarkedEncoder(dim=16).fingerprint, marked, marked, **options)


def in_a_process(code: str, **environment: str) -> int:
    """Run Python code in a process of its own, and return its exit status."""
    env = {**os.environ, **worker_environment(), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False).returncode
