"""MTEB tasks by name, with data from the hub's cache or from a local folder, run by mteb's own task classes.

A local folder stands for a task's data in the layouts of `beir`, `sts` and `local_sets`: BEIR's for Retrieval, a csv of
pairs and scores for STS, train.* and test.* for Classification, texts with labels for Clustering, pairs with labels for
PairClassification, jsonl of candidates for Reranking. Knows mteb's tasks and files. Knows no encoder.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from rayvec.errors import UserError
from rayvec.evaluation.beir import load_beir, read_titled
from rayvec.evaluation.local_sets import (
    read_candidates,
    read_labelled,
    read_labelled_pairs,
    read_split,
)
from rayvec.evaluation.mteb_library import mteb
from rayvec.evaluation.sts import read_pairs

#: mteb's class of each kind of task, and the kind's main metric in MTEB's English benchmark.
CLASSES = {
    "Retrieval": ("AbsTaskRetrieval", "ndcg_at_10"),
    "Reranking": ("AbsTaskRetrieval", "map_at_1000"),
    "Clustering": ("AbsTaskClusteringLegacy", "v_measure"),
    "PairClassification": ("AbsTaskPairClassification", "cosine_ap"),
    "Classification": ("AbsTaskClassification", "accuracy"),
    "STS": ("AbsTaskSTS", "cosine_spearman"),
}


#: The benchmark that LLM2Vec's tables are over.
BENCHMARK = "MTEB(eng, v1)"


def get_task(name: str, local: str = "") -> Any:
    """A task of MTEB by its name, in English, on one split; its data is that of the local place, if one is given.

    Split and subsets are those of the benchmark that LLM2Vec's tables are over, where the task is in it; else the
    split for testing and the subsets of English alone, where it has them.

    Raises UserError for an unknown name, or when the place does not hold such data.
    """
    library = mteb()
    try:
        task = library.get_task(name, languages=["eng"])
    except (KeyError, ValueError) as error:
        detail = " ".join(str(error).strip("\"'").split())[:160]
        raise UserError(f"MTEB has no English task {name!r} ({detail}); see mteb.get_tasks()") from None
    splits, subsets = _of_benchmark().get(task.metadata.name, (task.eval_splits, task.hf_subsets))
    task.filter_eval_splits(["test"] if "test" in splits else list(splits)[:1])
    task.hf_subsets = _english(task, subsets)
    return fill(task, local) if local else task


def _english(task: Any, subsets: Sequence[str]) -> list[str]:
    """Of the subsets those of English alone, where a task pairs it with other languages; one where several are alike.

    Subsets of other names, by subject say, are parts of one task: mteb's score is the mean over them.
    """
    languages = task.metadata.hf_subsets_to_langscripts
    alone = [subset for subset in subsets if all(lang.startswith("eng") for lang in languages[subset])]
    # Beside `en` there may be `en-ext`, the same with more.
    plain = [subset for subset in alone if subset in ("en", "en-en")]
    return plain[:1] or alone or list(subsets)


@cache
def _of_benchmark() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Splits and subsets of the benchmark's tasks, by name."""
    tasks = mteb().get_benchmark(BENCHMARK).tasks
    return {task.metadata.name: (tuple(task.eval_splits), tuple(task.hf_subsets)) for task in tasks}


def data_of(task: Any) -> list[str]:
    """Which data a task is scored on: revision, split and subsets, of each part of a task that is made of others."""
    parts = task.tasks if task.is_aggregate else [task]
    return [
        f"{part.metadata.dataset['path']}@{part.metadata.revision} {','.join(part.eval_splits)} "
        f"{','.join(part.hf_subsets)}"
        for part in parts
    ]


def local_task(kind: str, name: str, place: str, prompt: str | None = None) -> Any:
    """A task of one of mteb's classes over data of one's own. Raises UserError."""
    if kind not in CLASSES:
        raise UserError(f"kind = {kind!r}: tasks from local data are {', '.join(CLASSES)}")
    base, main_score = CLASSES[kind]
    metadata = mteb("abstasks.task_metadata").TaskMetadata(
        name=name,
        description=f"{kind} from a local folder",
        dataset={"path": f"local/{name}", "revision": "local"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        prompt=prompt,
    )
    module = "abstasks.clustering_legacy" if kind == "Clustering" else "abstasks"
    return fill(type(name, (getattr(mteb(module), base),), {"metadata": metadata})(), place)


def fill(task: Any, place: str) -> Any:
    """Give a task the data of a local place. Raises UserError when its kind cannot be read from files."""
    kind = task.metadata.type
    if kind not in _READERS or task.is_aggregate:
        known = ", ".join(_READERS)
        raise UserError(f"{task.metadata.name} ({kind}) cannot be read from {place}; local data is for {known}")
    split = task.eval_splits[0]
    data = _READERS[kind](task, place, split)
    task.hf_subsets = task.hf_subsets[:1]  # a place holds one set
    task.dataset = {task.hf_subsets[0]: data}
    task.data_loaded = True
    return task


def load(task: Any) -> None:
    """Load a task's data from the hub or its cache. Raises UserError that names the cure when it is not there."""
    if task.data_loaded:
        return
    name = task.metadata.name
    try:
        with quiet(), contextlib.nullcontext() if _hub_answers() else _offline():
            task.load_data()
    except Exception as error:  # datasets, the hub's client and the network raise dozens of kinds: not there
        detail = " ".join(str(error).split())[:120]
        raise UserError(
            f"the data of {name} ({task.metadata.dataset['path']}) is neither in the Hugging Face cache nor given by "
            f"the hub ({detail}); run python -c \"import mteb; mteb.get_task('{name}').load_data()\" where the network "
            f"allows and bring the cache (HF_HOME), or give a local place with --set local.{name}=PATH"
        ) from None


@cache
def _hub_answers() -> bool:
    """Whether there is a hub: asked once, for its client tries again for minutes a task."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5)
    except httpx.HTTPError:
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """What is in the cache, and nothing else."""
    import datasets
    from huggingface_hub import constants

    switches = ((datasets.config, "HF_DATASETS_OFFLINE"), (constants, "HF_HUB_OFFLINE"))
    before = [getattr(owner, name) for owner, name in switches]
    for owner, name in switches:
        setattr(owner, name, True)
    try:
        yield
    finally:
        for (owner, name), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of mteb and datasets."""
    import datasets

    level = logging.getLogger("mteb").level
    bars = datasets.are_progress_bars_disabled()
    logging.getLogger("mteb").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # Of newer editions of a task, of classifiers that have not converged: both are the benchmark's choice.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.getLogger("mteb").setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _retrieval(task: Any, place: str, split: str) -> dict[str, Any]:
    del task
    found = load_beir(place, split)
    queries = [{"id": id_, "text": text} for id_, text in zip(found.query_ids, found.queries, strict=True)]
    return {split: _search_data(read_titled(place), queries, {query: found.qrels[query] for query in found.query_ids})}


def _reranking(task: Any, place: str, split: str) -> dict[str, Any]:
    del task
    found = read_candidates(place)
    corpus = [{"id": id_, "title": "", "text": text} for id_, text in found.documents.items()]
    queries = [{"id": id_, "text": text} for id_, text in found.queries.items()]
    return {split: {**_search_data(corpus, queries, found.qrels), "top_ranked": dict(found.candidates)}}


def _search_data(
    corpus: Sequence[Mapping[str, str]], queries: Sequence[Mapping[str, str]], qrels: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    from datasets import Dataset

    judged = {query: dict(grades) for query, grades in qrels.items()}
    return {
        "corpus": Dataset.from_list(list(corpus)),
        "queries": Dataset.from_list(list(queries)),
        "relevant_docs": judged,
        "top_ranked": None,
    }


def _sts(task: Any, place: str, split: str) -> Any:
    pairs = read_pairs(place)
    first, second = task.column_names
    return _splits({split: {first: pairs.first, second: pairs.second, "score": pairs.scores.tolist()}})


def _classification(task: Any, place: str, split: str) -> Any:
    train, test = read_split(place)
    text, label = task.input_column_name, task.label_column_name
    # Numbers in the order of the labels: of two classes mteb takes 1 to be the one that is looked for.
    numbers = {name: number for number, name in enumerate(sorted(set(train.labels)))}
    columns = {
        name: {text: part.texts, label: [numbers[one] for one in part.labels]}
        for name, part in ((task.train_split, train), (split, test))
    }
    return _splits(columns)


def _clustering(task: Any, place: str, split: str) -> Any:
    """mteb's older clustering takes a row a set: here one set of all texts."""
    found = read_labelled(place)
    text, label = task.input_column_name, task.label_column_name
    return _splits({split: {text: [found.texts], label: [found.labels]}})


def _pairs(task: Any, place: str, split: str) -> Any:
    pairs = read_labelled_pairs(place)
    columns = {task.input1_column_name: pairs.first, task.input2_column_name: pairs.second}
    return _splits({split: {**columns, task.label_column_name: pairs.labels_N.tolist()}})


def _splits(columns: Mapping[str, Mapping[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_dict(dict(values)) for split, values in columns.items()})


_READERS: dict[str, Callable[[Any, str, str], Any]] = {
    "Retrieval": _retrieval,
    "Reranking": _reranking,
    "STS": _sts,
    "Classification": _classification,
    "Clustering": _clustering,
    "PairClassification": _pairs,
}


def run(model: Any, task: Any) -> dict[str, float]:
    """mteb's own runner on one task whose data is loaded: its metrics that are numbers, `main_score` among them.

    Of several subsets it is the mean, as mteb takes it. Nothing is read from or written to mteb's cache of results.
    Raises UserError when the data is not there.
    """
    load(task)
    options = {"batch_size": 1024, "show_progress_bar": False}
    with quiet():
        result = mteb().evaluate(
            model, task, cache=None, co2_tracker=False, show_progress_bar=False, encode_kwargs=options
        )
    (found,) = result.task_results
    subsets = [
        {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
        for scores in found.scores[task.eval_splits[0]]
    ]
    common = [name for name in subsets[0] if all(name in scores for scores in subsets)]
    numbers = {name: sum(scores[name] for scores in subsets) / len(subsets) for name in common}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
