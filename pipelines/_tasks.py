"""Tasks of a table: what each kind reads and which metric its column tells. How they score is in `_scorers`.

Places are relative to the table's `root`, where they are relative at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from rayvec.config import Config
from rayvec.evaluation.word_level import Position, ProbeSettings


class _TaskConfig(Config):
    name: str = Field(min_length=1)


class RetrievalTask(_TaskConfig):
    """nDCG@10 of search in a folder in BEIR's layout, a suite (pydocs) or a Parquet file of documents."""

    kind: Literal["retrieval"] = "retrieval"
    data: str
    split: str = "test"
    max_queries: PositiveInt | None = None
    #: Search only so many documents: all that are judged, and others spread over the corpus. Scores rise by it.
    max_documents: PositiveInt | None = None


class SimilarityTask(_TaskConfig):
    """Spearman's correlation of cosines with judgements: a csv of sentence, sentence, score."""

    kind: Literal["sts"] = "sts"
    data: str


class ClassificationTask(_TaskConfig):
    """Accuracy of logistic regression on eight texts a class: a folder of train.* and test.*, or pydocs by package."""

    kind: Literal["classification"] = "classification"
    data: str
    max_texts: PositiveInt | None = None


class ClusteringTask(_TaskConfig):
    """V-measure of mini-batch k-means: texts with a class, or pydocs by package."""

    kind: Literal["clustering"] = "clustering"
    data: str
    max_texts: PositiveInt | None = None


class PairTask(_TaskConfig):
    """Average precision of pairs that belong together: sentence1, sentence2 and a label of 0 or 1."""

    kind: Literal["pairs"] = "pairs"
    data: str


class RerankingTask(_TaskConfig):
    """MAP of candidates: jsonl of query, positive and negative, or what BM25 finds first in a BEIR folder or suite."""

    kind: Literal["reranking"] = "reranking"
    data: str
    #: BEIR folders: how many of BM25's results are reranked.
    depth: PositiveInt = 50
    split: str = "test"
    max_queries: PositiveInt | None = None
    max_documents: PositiveInt | None = None


class WordTask(_TaskConfig):
    """Accuracy (or entity F1) of a linear probe on token states; see pipelines/words.py."""

    kind: Literal["words"] = "words"
    train: str
    test: str = ""
    tag_column: int = -1
    position: Position | Literal["auto"] = "auto"
    probe: ProbeSettings = ProbeSettings()
    max_sentences: PositiveInt | None = None
    metric: Literal["accuracy", "entity_f1"] = "accuracy"


TaskConfig = Annotated[
    RetrievalTask | SimilarityTask | ClassificationTask | ClusteringTask | PairTask | RerankingTask | WordTask,
    Field(discriminator="kind"),
]

#: The metric that stands in the table, by kind.
METRICS = {
    "retrieval": "nDCG@10",
    "sts": "Spearman",
    "classification": "accuracy",
    "clustering": "v-measure",
    "pairs": "AP",
    "reranking": "MAP",
}


def metric_of(task: Any) -> str:
    """The metric of a task's column."""
    return METRICS.get(task.kind) or ("entity F1" if task.metric == "entity_f1" else "accuracy")
