"""The vectors that an index is made of: the parts in order, checked, and what is done to each vector on the way.

Shapes: N vectors, D dimensions of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayvec import storage
from rayvec.data.embeddings import EmbeddingsDataset
from rayvec.indexing import tasks
from rayvec.indexing.fitting import fit
from rayvec.indexing.pca import Projection
from rayvec.indexing.ranking import Rows
from rayvec.indexing.vectors import Part, Vectors, check_part, parts_of, read_rows, read_slice, read_vectors, slices

#: Tasks that a pass over the parts is cut into. A constant, not the cluster's size: sums come out the same everywhere.
PASSES = 32


@dataclass(frozen=True)
class Corpus:
    """The vectors to be indexed: the parts in order, and what is done to each vector on the way.

    columns: of documents that the parts' are brought to, in name and type; as the first part has them where None.
    """

    parts: tuple[Part, ...]
    dim: int
    normalize: bool
    projection: Projection | None = None
    columns: pa.Schema | None = None

    @classmethod
    def of(cls, dataset: EmbeddingsDataset) -> Corpus:
        """The parts of an embeddings dataset. Search is by cosine: vectors are brought to length 1."""
        return cls.over([dataset], None)

    @classmethod
    def over(cls, datasets: Sequence[EmbeddingsDataset], left_out: Rows | None) -> Corpus:
        """The parts of several datasets of one encoder, one after the other, without some of their rows (ascending)."""
        uris = [uri for dataset in datasets for uri in dataset.part_uris]
        records = [part for dataset in datasets for part in dataset.parts]
        return cls(tuple(parts_of(uris, records, left_out)), datasets[0].dim, normalize=True)

    @property
    def count(self) -> int:
        """Number of vectors."""
        return sum(part.rows for part in self.parts)

    @property
    def dim_index(self) -> int:
        """Dimensions of what is indexed."""
        return self.projection.dim_out if self.projection else self.dim

    def batches(self, start: int, stop: int) -> Iterator[Vectors]:
        """The vectors of rows [start, stop), projected."""
        for vectors in read_vectors(slices(self.parts, start, stop), self.dim, normalize=self.normalize):
            yield self.projection(vectors) if self.projection else vectors

    def ranges(self, pieces: int) -> list[tuple[int, int]]:
        """Rows [0, count) cut into so many ranges of about equal size, none empty."""
        bounds = np.linspace(0, self.count, max(1, min(pieces, self.count)) + 1).astype(int).tolist()
        return list(pairwise(bounds))


def check_parts(corpus: Corpus) -> None:
    """Raise VerificationError, naming the part, unless every part is as its manifest says."""
    for _ in tasks.each(check_part, [(part,) for part in corpus.parts]):
        pass


def take(corpus: Corpus, rows: Rows) -> Vectors:
    """The vectors of some rows, ascending, as the encoder made them: float32 [len(rows), D]."""
    found = tasks.each(_take, [(part, rows, corpus.dim, corpus.normalize) for part in holding(corpus, rows)])
    return np.concatenate([np.empty((0, corpus.dim), np.float32), *found])


def _take(part: Part, rows: Rows, dim: int, normalize: bool) -> Vectors:
    return read_rows([part], rows, dim, normalize=normalize)


def holding(corpus: Corpus, rows: Rows) -> Iterator[Part]:
    """The parts in which some of these ascending rows are."""
    for part in corpus.parts:
        low, high = np.searchsorted(rows, [part.start, part.stop])
        if low < high:
            yield part


def schema_of(corpus: Corpus, names: Sequence[str]) -> pa.Schema:
    """Those of the columns that the documents have, with their types."""
    fs, path = storage.filesystem(corpus.parts[0].uri)
    fields = {field.name: field for field in [*pq.read_schema(path, filesystem=fs), *(corpus.columns or ())]}
    return pa.schema([fields[name] for name in names if name in fields])


def columns_of(corpus: Corpus, names: Sequence[str]) -> dict[str, str]:
    """The Arrow types of those of the columns that the documents have."""
    return {field.name: str(field.type) for field in schema_of(corpus, names)}


def read_documents(corpus: Corpus, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The columns of the schema of rows [start, stop), in batches; null where a part has none."""
    for piece in slices(corpus.parts, start, stop):
        for batch in read_slice(piece, schema.names):
            yield fit(batch, schema)
