"""Scores of vectors, as MTEB computes them: similarity, classification, clustering, pairs, reranking.

Each function gives the main metric of mteb's task class on the same vectors, to the last digits, with the values or the
draws that intervals and tests need; the metrics are scikit-learn's and ir_measures'. Knows vectors and labels. Knows no
encoder, no file and no mteb. Shapes: N texts or pairs, Q queries, D dimensions, E experiments.
"""

from __future__ import annotations

import importlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from rayvec.errors import UserError
from rayvec.evaluation.scores import Indices, Score, of_items, of_metric
from rayvec.evaluation.statistics import Values
from rayvec.evaluation.sts import correlation, cosines

Vectors = npt.NDArray[np.float32]
Qrels = Mapping[str, Mapping[str, int]]

#: mteb's numbers: the seed of everything; texts of each class that a classifier learns from, and how often; k-means.
SEED = 42
TEXTS_A_CLASS = 8
EXPERIMENTS = 10
ITERATIONS = 100
KMEANS_BATCH = 500
#: Draws where a single value takes long.
_FEWER_DRAWS = 499


def similarity(first_ND: Vectors, second_ND: Vectors, scores_N: Values) -> Score:
    """Spearman's correlation of cosines with people's judgements (`cosine_spearman`)."""
    predicted = cosines(first_ND, second_ND)
    return of_metric(lambda places: correlation(predicted[places], scores_N[places]), len(scores_N))


def chosen_texts(labels: Sequence[str], texts_a_class: int = TEXTS_A_CLASS) -> list[list[int]]:
    """Which texts each experiment's classifier learns from: the first of each class in an order that is shuffled again.

    The very texts that mteb chooses: it shuffles the order of the experiment before by the same seed.
    """
    order = list(range(len(labels)))
    found = []
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(order)
        counts: defaultdict[str, int] = defaultdict(int)
        chosen = []
        for place in order:
            if counts[labels[place]] < texts_a_class:
                counts[labels[place]] += 1
                chosen.append(place)
        found.append(chosen)
    return found


def classification(
    train_ND: Mapping[int, npt.NDArray[np.float32]], train: Sequence[str], test_ND: Vectors, test: Sequence[str]
) -> Score:
    """Accuracy of logistic regression, mean over ten experiments of eight texts a class (`accuracy`).

    train_ND: the vector of each text that `chosen_texts` names, by its place. An item's value is the share of the
    experiments in which it was right.
    """
    model = _library("sklearn.linear_model").LogisticRegression
    gold = np.asarray(test)
    right_N = np.zeros(len(test))
    for chosen in chosen_texts(train):
        learner = model(max_iter=ITERATIONS, random_state=SEED)
        with _without_warnings():
            learner.fit(np.stack([train_ND[place] for place in chosen]), [train[place] for place in chosen])
        right_N += learner.predict(test_ND) == gold
    return of_items(right_N / EXPERIMENTS)


def clustering(vectors_ND: Vectors, labels: Sequence[str]) -> Score:
    """V-measure of mini-batch k-means with as many clusters as labels (`v_measure` of a set of texts).

    The interval is that of the texts, the clusters as they are; how k-means would fall another time is not in it. Texts
    that are drawn twice are always together, which raises the v-measure of every draw: so draws are centred.
    """
    kmeans = _library("sklearn.cluster").MiniBatchKMeans(
        n_clusters=len(set(labels)), batch_size=KMEANS_BATCH, n_init="auto", random_state=SEED
    )
    with _without_warnings():
        found_N = kmeans.fit(vectors_ND).labels_
    v_measure = _library("sklearn.metrics").v_measure_score
    gold_N = np.unique(np.asarray(labels), return_inverse=True)[1]

    def metric(places: Indices) -> float:
        return float(v_measure(gold_N[places], found_N[places]))

    return of_metric(metric, len(labels), _FEWER_DRAWS, centred=True)


def pair_classification(first_ND: Vectors, second_ND: Vectors, labels_N: npt.NDArray[np.int64]) -> Score:
    """Average precision of pairs ordered by cosine: 1 for those that belong together (`cosine_ap`)."""
    predicted = cosines(first_ND, second_ND)
    precision = _library("sklearn.metrics").average_precision_score

    def metric(places: Indices) -> float:
        # A draw without a pair that belongs together has no precision.
        return float(precision(labels_N[places], predicted[places])) if labels_N[places].any() else 0.0

    return of_metric(metric, len(labels_N), _FEWER_DRAWS)


def reranking(run: Mapping[str, Mapping[str, float]], qrels: Qrels, metric: str = "AP@1000") -> Score:
    """Mean average precision of each query's candidates in the order of their scores (`map_at_1000`), or "nDCG@10".

    run: the candidates' scores by query and candidate.
    """
    import ir_measures

    measure = ir_measures.parse_measure(metric)
    judged = {query: dict(qrels[query]) for query in run}
    values = dict.fromkeys(run, 0.0)
    for found in ir_measures.pytrec_eval.iter_calc([measure], judged, {q: dict(scores) for q, scores in run.items()}):
        values[found.query_id] = found.value
    return of_items(np.array(list(values.values())))


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            "this is scored by scikit-learn, which is not installed; run pip install scikit-learn"
        ) from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of few texts a classifier says that it has not converged: so few iterations are the protocol's own choice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
