"""What the advisor is asked: which embeddings, which grid, and how good the answer must be."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from rayvec.config import Config
from rayvec.errors import UserError

Way = Literal["pca", "pca+whiten", "truncate"]


class AdviseConfig(Config):
    """Of which embeddings, on how large a sample, over which grid, and how good the answer must be."""

    kind: Literal["advise"] = "advise"
    #: The output of the embed job.
    embeddings: str = ""
    #: A folder for advice.json, advice.md and the pictures.
    output: str = ""
    #: Vectors that are tried, drawn uniformly; judged documents come on top.
    sample: PositiveInt = 50_000
    #: Numbers of dimensions beside all of them; 512, 256 and 128 by default, as far as the vectors have more.
    dims: tuple[PositiveInt, ...] = ()
    #: How dimensions become fewer. Truncation is for encoders trained for it (Matryoshka).
    ways: tuple[Way, ...] = ("pca", "truncate")
    #: FAISS factory strings, in which {centroids} stands for the usual number of lists, {dim} and {half} for the
    #: dimensions that are indexed and half of them. A grid of all kinds by default.
    factories: tuple[str, ...] = ()
    #: Queries with known answers: a folder that jobs.embed made of them, with the same encoder (their instruction with
    #: --set instruction=…), and a BEIR file of query-id, corpus-id and score.
    queries: str = ""
    qrels: str = ""
    #: Of these, at most so many, drawn at random.
    max_queries: PositiveInt = 1000
    #: recall@10 against exact search over the whole vectors that the recommended index must reach.
    recall_target: float = Field(default=0.95, gt=0, le=1)
    seed: NonNegativeInt = 0

    @field_validator("factories")
    @classmethod
    def _known_factories(cls, factories: tuple[str, ...]) -> tuple[str, ...]:
        from rayvec.indexing import spec
        from rayvec.indexing.grid import named

        for factory in factories:
            if factory == spec.AUTO:
                raise UserError(f"factories: {spec.AUTO!r} is a choice by size; name the forms to choose among")
            spec.check_factory(named(factory, 10_000, 64))
        return factories
