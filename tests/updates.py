"""An index over time, beside what it should hold: the model that tests of updates compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.index import IndexConfig, index
from pipelines.update import UpdateConfig, update
from rayvec.indexing import versions
from rayvec.indexing.lexical import Lexical, average_length, bag
from rayvec.indexing.searcher import LEXICAL, Index
from rayvec.indexing.vectors import Vectors
from tests.artifacts import TEXTS, random_vectors, texts_for, write_embeddings

COUNT, DIM = 400, 16
VECTORS = random_vectors(COUNT, DIM)
QUERIES = random_vectors(25, DIM, seed=3)
WORDS = ["path join", "sort the list", "network socket address", "json string", "number77", "fresh text", "title"]


class Model:
    """What an index should hold: vector and text by id, in the order in which they came. Writes batches and updates."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.generator = folder, np.random.default_rng(seed)
        self.live: dict[str, tuple[np.ndarray, str]] = {}
        self.batches = 0

    @property
    def index(self) -> Path:
        return self.folder / "index"

    def batch(self, ids: list[str], vectors: Vectors, texts: list[str], **settings: Any) -> Path:
        """Embeddings of these documents; the model takes them in."""
        for id_, vector, text in zip(ids, vectors, texts, strict=True):
            self.live.pop(id_, None)
            self.live[id_] = (vector, text)
        self.batches += 1
        return write_embeddings(self.folder / f"batch-{self.batches}", vectors, texts, ids=ids, **settings)

    def build(self, **settings: Any) -> None:
        ids = [f"doc-{i}" for i in range(COUNT)]
        folder = self.batch(ids, VECTORS, texts_for(COUNT))
        index(
            IndexConfig(embeddings=str(folder), output=str(self.index), lexical_columns=("text",)).replace(**settings)
        )

    def upsert(self, ids: list[str], delete: list[str] = [], **settings: Any) -> dict[str, Any]:  # noqa: B006
        """Random vectors and texts for these ids, in one update with the deletes; its report."""
        for id_ in delete:
            self.live.pop(id_, None)
        seed = int(self.generator.integers(1 << 30))
        texts = [f"{TEXTS[seed % 4]} fresh text{seed + i}, " + "again " * (i % 7) for i in range(len(ids))]
        folder = str(self.batch(ids, random_vectors(len(ids), DIM, seed), texts, parts=2, **settings)) if ids else ""
        return update(UpdateConfig(index=str(self.index), embeddings=folder, delete=tuple(delete)))

    def delete(self, ids: list[str]) -> dict[str, Any]:
        return self.upsert([], ids)

    def some(self, count: int) -> list[str]:
        """Some of the ids that are live."""
        return [str(id_) for id_ in self.generator.choice(sorted(self.live), count, replace=False)]


def dense_ids(opened: Index, k: int) -> tuple[list[list[str]], np.ndarray]:
    found = opened.dense(QUERIES, k)
    return [[row["id"] for row in opened.documents(rows, ["id"])] for rows in found.rows], found.scores


def check_dense(model: Model, k: int = 20) -> None:
    """Every answer is what comparing with every live vector gives."""
    opened = Index.open(model.index, threads=1)
    names, vectors = list(model.live), np.stack([vector for vector, _ in model.live.values()])
    assert opened.count == len(names)
    scores = QUERIES @ vectors.T
    order = np.argsort(-scores, axis=1)[:, :k]
    found, values = dense_ids(opened, k)
    np.testing.assert_allclose(values, np.take_along_axis(scores, order, axis=1), atol=1e-5)
    assert found == [[names[row] for row in rows] for rows in order]


def lexical_scores(opened: Index, query: str) -> dict[str, float]:
    hits = opened.lexical([query], opened.count).hits(0)
    ids = opened.documents([row for row, _ in hits], ["id"])
    return {found["id"]: score for found, (_, score) in zip(ids, hits, strict=True)}


def check_lexical(model: Model) -> None:
    """Scores are those of a fresh build over the live texts with the base's mean length, and within what is told of one
    with their own."""
    opened = Index.open(model.index, threads=1)
    bags = [bag(text for _, text in model.live.values())]
    base = average_length(versions.version_folder(model.index) / LEXICAL)
    for fresh, tolerance in (
        (Lexical.from_bags(bags, average=base), 1e-5),
        (Lexical.from_bags(bags), opened.lexical_drift() + 1e-5),
    ):
        for query in WORDS:
            names = list(model.live)
            expected = {names[row]: score for row, score in fresh.search([query], len(names)).hits(0)}
            assert lexical_scores(opened, query) == pytest.approx(expected, rel=tolerance), query


def check(model: Model) -> None:
    check_dense(model)
    check_lexical(model)
