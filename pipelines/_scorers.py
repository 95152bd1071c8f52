"""Scoring systems on tasks: each kind's data is read once, and then asked about as many systems as there are.

A score is None where a system cannot take part: BM25 has no vectors of sentences, an echo no states of words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines._systems import SystemConfig
from pipelines._tasks import (
    ClassificationTask,
    ClusteringTask,
    PairTask,
    RerankingTask,
    RetrievalTask,
    SimilarityTask,
    WordTask,
)
from pipelines.measure import SUITES, MeasureConfig, left_out_note, load_task
from rayvec import uris
from rayvec.errors import UserError

if TYPE_CHECKING:
    from pipelines._vectors import KeptVectors
    from rayvec.evaluation.beir import Task
    from rayvec.evaluation.scores import Score
    from rayvec.indexing.lexical import Lexical
    from rayvec.indexing.ranking import Ranking


@dataclass(frozen=True)
class Subject:
    """A system at work: its settings, and its vectors (or its dense side's) where it has any."""

    config: SystemConfig
    vectors: KeptVectors | None
    #: hybrid: the settings of the dense side.
    dense: SystemConfig | None = None

    @property
    def instruction(self) -> str | None:
        """What stands before queries."""
        return (self.dense or self.config).instruction


Found = tuple["Score", dict[str, float]]
Vectors = npt.NDArray[np.float32]
Scorer = Callable[[Subject], Found | None]
#: Texts to vectors, after a system's own instruction.
Encode = Callable[[Sequence[str]], Vectors]


def prepare(task: Any, root: str, cache: str) -> Scorer:
    """Read a task's data once; the result scores as many systems as are asked about it. Raises UserError."""
    return _PREPARED[task.kind](task, root, cache)


def place(root: str, path: str) -> str:
    """A place under the root, unless it stands by itself."""
    return uris.join(root, path) if root and uris.is_local(path) and not path.startswith("/") else path


class _Search:
    """A retrieval task with its texts in memory, its lexical index and BM25's ranking, made when they are asked for.

    Of a document's id that is repeated, the first counts.
    """

    def __init__(self, task: Any, root: str, cache: str) -> None:
        # The suites' names are no places.
        data = task.data if task.data in SUITES else place(root, task.data)
        config = MeasureConfig(data=data, split=task.split, max_queries=task.max_queries, cache=cache)
        self.task: Task = load_task(config)
        first: dict[str, str] = {}
        for ids, texts in self.task.corpus.batches():
            for id_, text in zip(ids, texts, strict=True):
                first.setdefault(id_, text)
        if note := left_out_note(self.task.corpus.left_out):
            sys.stderr.write(f"{task.name}: {note}\n")
        self.ids, self.texts = list(first), list(first.values())
        self.queries = list(self.task.queries)
        if task.max_documents is not None:
            self._keep(task.max_documents)

    def _keep(self, limit: int) -> None:
        """All judged documents, and of the others as many as fit, at equal distances."""
        judged = {document for query in self.task.query_ids for document in self.task.qrels[query]}
        others = [place for place, document in enumerate(self.ids) if document not in judged]
        room = max(0, limit - (len(self.ids) - len(others)))
        kept = {others[i * len(others) // room] for i in range(min(room, len(others)))}
        places = [place for place, document in enumerate(self.ids) if document in judged or place in kept]
        self.ids, self.texts = [self.ids[place] for place in places], [self.texts[place] for place in places]

    @cached_property
    def words(self) -> Lexical:
        from rayvec.indexing.lexical import Lexical

        return Lexical.build(self.texts)

    @cached_property
    def lexical(self) -> Ranking:
        from rayvec.evaluation.retrieval import DEPTH

        return self._of_others(self.words.search(self.queries, DEPTH + 1))

    def _of_others(self, ranking: Ranking) -> Ranking:
        """The ranking without the queries themselves."""
        from rayvec.evaluation.retrieval import DEPTH, own_places

        return ranking.without(own_places(ranking.rows, self.ids, self.task.query_ids, self.task.qrels)).top(DEPTH)

    def dense(self, subject: Subject) -> Ranking:
        from rayvec.evaluation.exact import ExactSearch
        from rayvec.evaluation.retrieval import DEPTH
        from rayvec.indexing.ranking import Ranking

        assert subject.vectors is not None
        search = ExactSearch(subject.vectors(self.queries, subject.instruction), DEPTH + 1)
        search.add(subject.vectors(self.texts))
        return self._of_others(Ranking(search.rows_QK, search.scores_QK))

    def ranking(self, subject: Subject) -> Ranking:
        from rayvec.evaluation.retrieval import DEPTH
        from rayvec.indexing.hybrid import hybrid

        if subject.config.kind == "lexical":
            return self.lexical
        if subject.config.kind == "hybrid":
            return hybrid(self.lexical, self.dense(subject), DEPTH, subject.config.dense_weight)
        return self.dense(subject)


def _retrieval(task: RetrievalTask, root: str, cache: str) -> Scorer:
    from rayvec.evaluation.retrieval import evaluate
    from rayvec.evaluation.scores import of_items

    search = _Search(task, root, cache)

    def score(subject: Subject) -> Found:
        rows = search.ranking(subject).rows
        values = evaluate(rows, search.ids, search.task.query_ids, search.task.qrels)
        more = {name: float(value.mean()) for name, value in values.items()}
        return of_items(values["ndcg@10"]), {"documents": len(search.ids), "queries": len(rows), **more}

    return score


def _reranking(task: RerankingTask, root: str, cache: str) -> Scorer:
    if ".jsonl" in task.data:
        from rayvec.evaluation.local_sets import read_candidates

        found = read_candidates(place(root, task.data))
        queries, documents = dict(found.queries), dict(found.documents)
        candidates: Mapping[str, Any] = found.candidates
        qrels: Mapping[str, Mapping[str, int]] = found.qrels
        words = None
    else:
        search = _Search(task, root, cache)
        depth = min(task.depth, search.lexical.rows.shape[1])
        queries = dict(zip(search.task.query_ids, search.queries, strict=True))
        documents = dict(zip(search.ids, search.texts, strict=True))
        candidates = {
            query: [search.ids[row] for row in rows[:depth].tolist() if row >= 0]
            for query, rows in zip(search.task.query_ids, search.lexical.rows, strict=True)
        }
        qrels = search.task.qrels
        words = search.words
    # A query without any good candidate says nothing about who puts it first.
    able = {q for q, ids in candidates.items() if any(qrels[q].get(document, 0) > 0 for document in ids)}
    if not able:
        raise UserError(f"{task.name}: no query has a good candidate; raise depth")
    candidates = {query: ids for query, ids in candidates.items() if query in able}
    return _Reranker(queries, documents, candidates, qrels, words).score


@dataclass(frozen=True)
class _Reranker:
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    candidates: Mapping[str, Any]
    qrels: Mapping[str, Mapping[str, int]]
    #: The lexical index of the documents, in their order, where it is there already.
    words: Lexical | None = None

    def score(self, subject: Subject) -> Found:
        from rayvec.evaluation.vector_tasks import reranking

        scores = self._lexical if subject.config.kind == "lexical" else self._dense(subject)
        if subject.config.kind == "hybrid":
            weight = subject.config.dense_weight
            scores = {q: _summed(self._lexical[q], dense, weight) for q, dense in scores.items()}
        # Judgements of documents that are no candidates would lower everybody's MAP alike.
        qrels = {q: {d: self.qrels[q].get(d, 0) for d in run} for q, run in scores.items()}
        more = {"queries": len(scores), "ndcg@10": reranking(scores, qrels, "nDCG@10").value}
        return reranking(scores, qrels), more

    def _dense(self, subject: Subject) -> dict[str, dict[str, float]]:
        assert subject.vectors is not None
        # All of them, candidates or not: a retrieval task on the same corpus has made their vectors, or will need them.
        vectors = dict(zip(self.documents, subject.vectors(list(self.documents.values())), strict=True))
        queries = list(self.candidates)
        asked = subject.vectors([self.queries[query] for query in queries], subject.instruction)
        return {
            query: {document: float(vector @ vectors[document]) for document in self.candidates[query]}
            for query, vector in zip(queries, asked, strict=True)
        }

    @cached_property
    def _lexical(self) -> dict[str, dict[str, float]]:
        """BM25's scores of the candidates, query by query; the same for every system that asks."""
        from rayvec.indexing.lexical import Lexical

        words = self.words or Lexical.build(self.documents.values())
        row_of = {document: row for row, document in enumerate(self.documents)}
        result = {}
        for query, candidates in self.candidates.items():
            scores_N = words.scores(self.queries[query])
            result[query] = {document: float(scores_N[row_of[document]]) for document in candidates}
        return result


def _summed(lexical: Mapping[str, float], dense: Mapping[str, float], weight: float) -> dict[str, float]:
    """The platform's hybrid over one query's candidates."""
    from rayvec.indexing.hybrid import hybrid
    from rayvec.indexing.ranking import Ranking

    documents = list(lexical)
    rows = np.arange(len(documents))[None]
    words, vectors = (Ranking(rows, np.array([[run[d] for d in documents]], np.float32)) for run in (lexical, dense))
    return {documents[row]: score for row, score in hybrid(words, vectors, len(documents), weight).hits(0)}


def _by_vectors(found: Callable[[Encode], Found]) -> Scorer:
    """A scorer that takes a system's vectors of texts and nothing else; systems without any have no score."""

    def score(subject: Subject) -> Found | None:
        if not subject.config.has_vectors or subject.vectors is None:
            return None
        return found(partial(subject.vectors, instruction=subject.instruction))

    return score


def _similarity(task: SimilarityTask, root: str, cache: str) -> Scorer:
    from rayvec.evaluation.sts import read_pairs
    from rayvec.evaluation.vector_tasks import similarity

    del cache
    pairs = read_pairs(place(root, task.data))

    def found(encode: Encode) -> Found:
        first, second = encode(pairs.first), encode(pairs.second)
        return similarity(first, second, pairs.scores), {"pairs": len(pairs)}

    return _by_vectors(found)


def _classification(task: ClassificationTask, root: str, cache: str) -> Scorer:
    from rayvec.evaluation.local_sets import read_split
    from rayvec.evaluation.vector_tasks import chosen_texts, classification

    if task.data in SUITES:
        from pipelines._packages import by_package

        train, test = by_package(cache)
    else:
        train, test = read_split(place(root, task.data))
    test = test.spread(task.max_texts)
    needed = sorted({place_ for chosen in chosen_texts(train.labels) for place_ in chosen})

    def found(encode: Encode) -> Found:
        learned = encode([train.texts[i] for i in needed])
        asked = encode(test.texts)
        score = classification(dict(zip(needed, learned, strict=True)), train.labels, asked, test.labels)
        return score, {"texts": len(test), "classes": len(set(train.labels))}

    return _by_vectors(found)


def _clustering(task: ClusteringTask, root: str, cache: str) -> Scorer:
    from rayvec.evaluation.local_sets import read_labelled
    from rayvec.evaluation.vector_tasks import clustering

    if task.data in SUITES:
        from pipelines._packages import by_package

        texts = by_package(cache)[1]
    else:
        texts = read_labelled(place(root, task.data))
    texts = texts.spread(task.max_texts)

    def found(encode: Encode) -> Found:
        score = clustering(encode(texts.texts), texts.labels)
        return score, {"texts": len(texts), "classes": len(set(texts.labels))}

    return _by_vectors(found)


def _pairs(task: PairTask, root: str, cache: str) -> Scorer:
    from rayvec.evaluation.local_sets import read_labelled_pairs
    from rayvec.evaluation.vector_tasks import pair_classification

    del cache
    pairs = read_labelled_pairs(place(root, task.data))

    def found(encode: Encode) -> Found:
        first, second = encode(pairs.first), encode(pairs.second)
        return pair_classification(first, second, pairs.labels_N), {"pairs": len(pairs.first)}

    return _by_vectors(found)


def _words(task: WordTask, root: str, cache: str) -> Scorer:
    from pipelines.words import WordsConfig, load_words, probed
    from rayvec.modeling.encoder import TextEncoder

    del cache
    values = task.model_dump(include={"tag_column", "position", "probe", "max_sentences"})
    config = WordsConfig(train=place(root, task.train), test=place(root, task.test) if task.test else "", **values)
    split = load_words(config)

    def score(subject: Subject) -> Found | None:
        encoder = None if subject.vectors is None else subject.vectors.encoder
        if subject.config.kind != "encoder" or not isinstance(encoder, TextEncoder):
            return None
        return probed(encoder, split, config, task.metric)

    return score


_PREPARED: dict[str, Callable[[Any, str, str], Scorer]] = {
    "retrieval": _retrieval,
    "reranking": _reranking,
    "sts": _similarity,
    "classification": _classification,
    "clustering": _clustering,
    "pairs": _pairs,
    "words": _words,
}
