"""The exact searches that measuring compares, over vectors of a corpus that is gone through once.

Shapes: Q queries, N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines._vectors import Pool, Vectors
    from rayvec.evaluation.beir import Task
    from rayvec.evaluation.exact import ExactSearch
    from rayvec.indexing.ranking import Ranking
    from rayvec.modeling.encoder import Encoder


@dataclass
class DenseSearches:
    """The exact searches: with and without the instruction, in full and in each shorter dimension."""

    encoder: Encoder
    pool: Pool | None
    searches: dict[str, tuple[ExactSearch, int | None]] = field(default_factory=dict)

    @classmethod
    def over(
        cls,
        task: Task,
        encoder: Encoder,
        forms: Mapping[str, str | None],
        dimensions: Sequence[int],
        depth: int,
        pool: Pool | None,
    ) -> DenseSearches:
        """forms: by the name of a search, the instruction that stands before its queries."""
        from rayvec.evaluation.exact import ExactSearch, shortened

        dense = cls(encoder, pool)
        for name, instruction in forms.items():
            queries_QD = encoder.encode(list(task.queries), instruction)
            dense.searches[name] = (ExactSearch(queries_QD, depth), None)
            for dim in dimensions:
                dense.searches[f"{name}@{dim}"] = (ExactSearch(shortened(queries_QD, dim), depth), dim)
        return dense

    def add(self, texts: list[str], batch: int) -> None:
        """The next documents. With workers, vectors of documents before them are looked at meanwhile."""
        for start in range(0, len(texts), batch):
            chunk = texts[start : start + batch]
            if self.pool is None:
                self._look(self.encoder.encode(chunk))
            else:
                self.pool.submit(chunk, None)
                self._look_at_results(self.pool.ahead)

    def _look_at_results(self, left: int = 0) -> None:
        if self.pool is not None:
            for vectors_ND, _ in self.pool.results(left):
                self._look(vectors_ND)

    def _look(self, vectors_ND: Vectors) -> None:
        from rayvec.evaluation.exact import shortened

        for search, dim in self.searches.values():
            search.add(vectors_ND if dim is None else shortened(vectors_ND, dim))

    def rankings(self) -> dict[str, Ranking]:
        """The ranking of each search over all documents."""
        from rayvec.indexing.ranking import Ranking

        self._look_at_results()
        return {name: Ranking(search.rows_QK, search.scores_QK) for name, (search, _) in self.searches.items()}
