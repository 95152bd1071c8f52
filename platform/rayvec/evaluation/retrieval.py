"""Retrieval: nDCG@10, recall@10, recall@100 and MRR of rankings against judgements, query by query, by ir_measures.

Knows rows, ids and judgements. Knows no encoder and no index. Shapes: Q queries, K results a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rayvec.evaluation.statistics import Estimate, Values, estimate

Qrels = Mapping[str, Mapping[str, int]]
PerQuery = dict[str, Values]

#: Our names, and those of ir_measures.
METRICS = {"ndcg@10": "nDCG@10", "recall@10": "R@10", "recall@100": "R@100", "mrr": "RR"}
#: How many results a system must give for these.
DEPTH = 100


def evaluate(
    rows_QK: npt.NDArray[np.int64], document_ids: Sequence[str], query_ids: Sequence[str], qrels: Qrels
) -> PerQuery:
    """The value of each metric for each query, in the order of `query_ids`.

    rows_QK: places in `document_ids`, best first; -1 where a query found fewer. Gains are the judgements themselves
    (trec_eval's nDCG, as BEIR reports it); recall and MRR count judgements of 1 and more.
    """
    import ir_measures

    assert len(rows_QK) == len(query_ids), (len(rows_QK), len(query_ids))
    judged = {query: dict(qrels[query]) for query in query_ids}
    # Scores are ranks, so that the order given is the order judged, ties or not.
    run = {
        query: {document_ids[row]: float(-rank) for rank, row in enumerate(rows.tolist()) if row >= 0}
        for query, rows in zip(query_ids, rows_QK, strict=True)
    }
    measures = {ir_measures.parse_measure(name): ours for ours, name in METRICS.items()}
    place = {query: index for index, query in enumerate(query_ids)}
    values = {name: np.zeros(len(query_ids)) for name in METRICS}
    for found in ir_measures.pytrec_eval.iter_calc(list(measures), judged, run):
        values[measures[found.measure]][place[found.query_id]] = found.value
    return values


def estimates(per_query: PerQuery) -> dict[str, Estimate]:
    """The mean of each metric with its interval."""
    return {name: estimate(values) for name, values in per_query.items()}
