"""In-training evaluation: small retrieval, similarity and masked sets, loaded once and measured again and again.

Named as a string in the training job, since training does not know evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pipelines.measure import MeasureConfig, load_task
from rayvec.errors import UserError
from rayvec.training.stages import EvaluationSet, MaskedSet, RetrievalSet, StsSet, Texts

if TYPE_CHECKING:
    from rayvec.evaluation.beir import Task
    from rayvec.evaluation.sts import SentencePairs
    from rayvec.training.evaluation import Encode

LOG = logging.getLogger("rayvec.training")
#: How training finds this.
EVALUATOR = "pipelines.evaluate:Evaluation"
METRIC = "ndcg@10"
BATCH = 1024
Measured = Callable[["Encode"], Mapping[str, float]]


class Evaluation:
    """The sets of a configuration. Raises UserError when one is not there or not readable."""

    def __init__(self, sets: Sequence[EvaluationSet], cache: str) -> None:
        self.measures: list[Measured] = [_open(one, cache) for one in sets]

    def __call__(self, encode: Encode) -> Mapping[str, float]:
        """nDCG@10 of retrieval, Spearman's correlation of similarity, loss and accuracy of masked, by name."""
        return {name: value for measure in self.measures for name, value in measure(encode).items()}


def _open(config: EvaluationSet, cache: str) -> Measured:
    name = f"eval/{config.name}"
    if isinstance(config, StsSet):
        from rayvec.evaluation.sts import read_pairs

        return partial(_similarity, name, read_pairs(config.data))
    if isinstance(config, MaskedSet):
        return partial(_masked, name, _texts(config, cache))
    return partial(_retrieval, name, _task(config, cache), config.instruction)


def _texts(config: MaskedSet, cache: str) -> list[str]:
    from rayvec.data.pairs import is_held_out
    from rayvec.training.examples import Records, iter_texts

    chosen = config.source.kind == "pydocs" if config.held_out is None else config.held_out
    records = Records()
    rows = iter_texts(Texts(source=config.source, exclude_held_out=False, max_quarantine=1.0), cache, records)
    found = (text for id_, text in rows if not chosen or is_held_out(id_))
    texts = list(islice(found, config.max_documents))
    if records.told:
        LOG.warning("evaluation %s: left out %s", config.name, records.told)
    if not texts:
        raise UserError(f"evaluation {config.name}: {config.source.path} has no such text; give one, or held_out=false")
    return texts


def _task(config: RetrievalSet, cache: str) -> Task:
    return load_task(MeasureConfig(data=config.data, split=config.split, max_queries=config.max_queries, cache=cache))


def _masked(name: str, texts: list[str], encode: Encode) -> Mapping[str, float]:
    loss, accuracy = encode.guess(texts)
    return {f"{name}/masked_loss": loss, f"{name}/masked_accuracy": accuracy}


def _similarity(name: str, pairs: SentencePairs, encode: Encode) -> Mapping[str, float]:
    from rayvec.evaluation.sts import correlation, cosines

    value = correlation(cosines(encode(pairs.first), encode(pairs.second)), pairs.scores)
    return {f"{name}/spearman": value}


def _retrieval(name: str, task: Task, instruction: str | None, encode: Encode) -> Mapping[str, float]:
    from rayvec.evaluation.exact import ExactSearch
    from rayvec.evaluation.retrieval import DEPTH, evaluate

    asked = encode.instructions.get("query") if instruction is None else instruction
    search = ExactSearch(encode(list(task.queries), asked or None), DEPTH + 1)
    ids: list[str] = []
    for batch_ids, texts in task.corpus.batches():
        ids.extend(batch_ids)
        for start in range(0, len(texts), BATCH):
            search.add(encode(texts[start : start + BATCH]))
    values = evaluate(search.rows_QK, ids, task.query_ids, task.qrels)
    return {f"{name}/{METRIC}": float(values[METRIC].mean())}
