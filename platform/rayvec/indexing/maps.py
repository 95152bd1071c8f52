"""A map of an index: documents drawn uniformly, each at a point of the plane on which vectors vary most.

The plane is found from the documents drawn (PCA about their mean), and any other vector of the index is put on it by
the same projection, so hits lie where they belong. Memory is bounded whatever the size of the index: the documents
drawn, and as many again while they are read. Drawn by a seed: every copy of a service draws the same map of a version.

Knows an open index. Knows no search, no route.

Shapes: N documents drawn, D dimensions of the index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rayvec.indexing import pca
from rayvec.indexing.ranking import Rows
from rayvec.indexing.searcher import Index
from rayvec.indexing.vectors import Vectors
from rayvec.schema import ID, TITLE

#: Documents on a map; more than an eye tells apart.
POINTS = 5_000
#: Documents that are read at once: of a large collection each is in a row group of thousands.
READ_ROWS = 64
#: Characters of a title.
TITLE_LENGTH = 120


@dataclass(frozen=True)
class Map:
    """Documents at points float32 [N, 2], in no order: the first n are drawn uniformly too. `explained`: the share of
    the sample's variance that the plane keeps; `documents`: how many the index has."""

    version: str
    documents: int
    explained: float
    ids: list[str]
    titles: list[str | None]
    points: Vectors
    projection: pca.Projection

    def place(self, vectors_ND: Vectors) -> Vectors:
        """Where vectors of the same version are: [N, 2]."""
        return self.projection(vectors_ND)


def draw(index: Index, size: int = POINTS, seed: int = 0) -> Map:
    """The map of an open index, of `size` documents or as many as there are; it may be drawn beside searches."""
    rows = live_rows(index, size, seed)
    vectors_ND = index.vectors(rows)
    projection = pca.plane(vectors_ND)
    labels = _labels(index, rows)
    ids = [str(document[ID]) for document in labels]
    titles = [_short(document.get(TITLE)) for document in labels]
    explained = projection.explained[-1]
    return Map(index.version, index.count, explained, ids, titles, projection(vectors_ND), projection)


def live_rows(index: Index, size: int, seed: int | None) -> Rows:
    """Rows of documents that are there, drawn uniformly without replacement, in no order."""
    total = index.segments[-1].stop
    generator = np.random.default_rng(seed)
    # A few more are drawn than asked for, since some may be of deleted documents; all, where that is not enough.
    for wanted in (min(total, math.ceil(1.2 * size * total / index.count) + 100), total):
        rows = generator.choice(total, wanted, replace=False).astype(np.int64)
        rows = rows[~np.isin(rows, index.dropped)][:size]
        if len(rows) == min(size, index.count):
            break
    return rows


def _labels(index: Index, rows: Rows) -> list[dict[str, str | None]]:
    """Ids and titles in the order of rows, read in the order in which they lie."""
    columns = [name for name in (ID, TITLE) if name in index.columns]
    order = np.argsort(rows)
    found: list[dict[str, str | None]] = [{}] * len(rows)
    for start in range(0, len(rows), READ_ROWS):
        some = order[start : start + READ_ROWS]
        for place, document in zip(some.tolist(), index.documents(rows[some], columns), strict=True):
            found[place] = document
    return found


def _short(title: str | None) -> str | None:
    return title if title is None or len(title) <= TITLE_LENGTH else f"{title[: TITLE_LENGTH - 1]}…"
