"""The exact searches that measuring compares, over vectors of a corpus that is gone through once.

Shapes: Q queries, N documents, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayvec.errors import UserError

if TYPE_CHECKING:
    from pipelines._vectors import Pool, Vectors
    from pipelines.measure import MeasureConfig
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
    def over(cls, config: MeasureConfig, task: Task, encoder: Encoder, depth: int, pool: Pool | None) -> DenseSearches:
        from rayvec.evaluation.exact import ExactSearch, shortened

        dense = cls(encoder, pool)
        for name, instruction in query_forms(config, encoder).items():
            queries_QD = encoder.encode(list(task.queries), instruction)
            dense.searches[name] = (ExactSearch(queries_QD, depth), None)
            for dim in config.dimensions:
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


def query_forms(config: MeasureConfig, encoder: Encoder) -> dict[str, str | None]:
    """What stands before the queries, by system: nothing, and the instruction if there is one.

    Raises UserError where there is none, and nothing beside it shows that its system is the same as dense.
    """
    instruction = config.instruction or encoder.instructions.get("query")
    if instruction is None:
        if "instruction" in config.systems and "dense" not in config.systems:
            raise UserError(
                f"systems: {config.encoder} has no instruction for queries; give one with --set instruction=…, or "
                "measure dense"
            )
        return {"dense": None}
    wanted = {"dense": None, "instruction": instruction}
    if "hybrid" in config.systems or {"dense", "instruction"} <= set(config.systems):
        return wanted
    return {name: form for name, form in wanted.items() if name in config.systems}
