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
#: How many results a system must give for these; one more is asked for, since a query may find itself.
DEPTH = 100


def evaluate(
    rows_QK: npt.NDArray[np.int64], document_ids: Sequence[str], query_ids: Sequence[str], qrels: Qrels
) -> PerQuery:
    """The value of each metric for each query, in the order of `query_ids`.

    rows_QK: places in `document_ids`, best first; -1 where a query found fewer. A document that is found again counts
    where it stands first, and one that is the query itself nowhere: see `own_places`. Gains are the judgements
    themselves (trec_eval's nDCG, as BEIR reports it); recall and MRR count judgements of 1 and more.
    """
    import ir_measures

    assert len(set(query_ids)) == len(query_ids) == len(rows_QK), (len(rows_QK), len(query_ids))
    judged = {query: dict(qrels[query]) for query in query_ids}
    others_QK = np.where(own_places(rows_QK, document_ids, query_ids, qrels), -1, rows_QK)
    run: dict[str, dict[str, float]] = {}
    for query, rows in zip(query_ids, others_QK.tolist(), strict=True):
        found = dict.fromkeys(document_ids[row] for row in rows if row >= 0)
        # Scores are ranks, so that the order given is the order judged, ties or not.
        run[query] = {document: float(-rank) for rank, document in enumerate(found)}
    measures = {ir_measures.parse_measure(name): ours for ours, name in METRICS.items()}
    place = {query: index for index, query in enumerate(query_ids)}
    values = {name: np.zeros(len(query_ids)) for name in METRICS}
    for value in ir_measures.pytrec_eval.iter_calc(list(measures), judged, run):
        values[measures[value.measure]][place[value.query_id]] = value.value
    return values


def own_places(
    rows_QK: npt.NDArray[np.int64], document_ids: Sequence[str], query_ids: Sequence[str], qrels: Qrels
) -> npt.NDArray[np.bool_]:
    """Where a query finds itself, bool [Q, K]: a document of the query's id, unless it is judged above 0.

    In some sets queries are documents (ArguAna, Quora), and each is nearest to itself; BEIR's evaluator passes it over.
    """
    asked = {query: place for place, query in enumerate(query_ids) if qrels[query].get(query, 0) <= 0}
    own_QK = np.zeros(rows_QK.shape, dtype=bool)
    for row, document in enumerate(document_ids):
        if (place := asked.get(document)) is not None:
            own_QK[place] |= rows_QK[place] == row
    return own_QK


def estimates(per_query: PerQuery) -> dict[str, Estimate]:
    """The mean of each metric with its interval."""
    return {name: estimate(values) for name, values in per_query.items()}
