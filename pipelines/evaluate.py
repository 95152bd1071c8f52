"""In-training evaluation: small retrieval and similarity sets, loaded once and measured again and again.

Named as a string in the training job, since training does not know evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipelines.measure import MeasureConfig, load_task
from rayvec.training.stages import EvaluationSet, RetrievalSet, StsSet

if TYPE_CHECKING:
    from rayvec.evaluation.beir import Task
    from rayvec.evaluation.sts import SentencePairs
    from rayvec.training.evaluation import Encode

#: How training finds this.
EVALUATOR = "pipelines.evaluate:Evaluation"
METRIC = "ndcg@10"
BATCH = 1024
Measured = Callable[["Encode"], float]


class Evaluation:
    """The sets of a configuration. Raises UserError when one is not there or not readable."""

    def __init__(self, sets: Sequence[EvaluationSet], cache: str) -> None:
        self.measures: dict[str, Measured] = dict(_open(one, cache) for one in sets)

    def __call__(self, encode: Encode) -> Mapping[str, float]:
        """nDCG@10 of retrieval, Spearman's correlation of similarity, by eval/SET/METRIC."""
        return {name: measure(encode) for name, measure in self.measures.items()}


def _open(config: EvaluationSet, cache: str) -> tuple[str, Measured]:
    if isinstance(config, StsSet):
        from rayvec.evaluation.sts import read_pairs

        return f"eval/{config.name}/spearman", partial(_similarity, read_pairs(config.data))
    return f"eval/{config.name}/{METRIC}", partial(_retrieval, _task(config, cache), config.instruction)


def _task(config: RetrievalSet, cache: str) -> Task:
    return load_task(MeasureConfig(data=config.data, split=config.split, max_queries=config.max_queries, cache=cache))


def _similarity(pairs: SentencePairs, encode: Encode) -> float:
    from rayvec.evaluation.sts import correlation, cosines

    return correlation(cosines(encode(pairs.first), encode(pairs.second)), pairs.scores)


def _retrieval(task: Task, instruction: str | None, encode: Encode) -> float:
    from rayvec.evaluation.exact import ExactSearch
    from rayvec.evaluation.retrieval import DEPTH, evaluate

    search = ExactSearch(encode(list(task.queries), instruction), DEPTH)
    ids: list[str] = []
    for batch_ids, texts in task.corpus.batches():
        ids.extend(batch_ids)
        for start in range(0, len(texts), BATCH):
            search.add(encode(texts[start : start + BATCH]))
    values = evaluate(search.rows_QK, ids, task.query_ids, task.qrels)
    return float(values[METRIC].mean())
