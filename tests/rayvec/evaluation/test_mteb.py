"""Our scores against those of mteb's own runner on the same vectors; the suites; what is said when data is absent."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayvec.errors import UserError
from rayvec.evaluation import vector_tasks
from rayvec.evaluation.beir import load_beir
from rayvec.evaluation.exact import ExactSearch
from rayvec.evaluation.local_sets import read_candidates, read_labelled, read_labelled_pairs, read_split
from rayvec.evaluation.mteb_suites import PAPER_15, PAPER_56, PAPER_TABLE, tasks_of
from rayvec.evaluation.retrieval import DEPTH, evaluate
from rayvec.evaluation.sts import read_pairs
from rayvec.modeling.encoder import TextEncoder
from tests.models import tiny_llama

pytest.importorskip("mteb")

from rayvec.evaluation import mteb_tasks
from rayvec.evaluation.mteb_model import MtebModel, MtebPrompts

pytestmark = pytest.mark.filterwarnings("ignore")  # mteb's, datasets' and scikit-learn's own

WORDS = ["list", "sort", "vector", "file", "parquet", "socket", "open", "read", "number", "table", "query", "path"]
CLASSES = ("storage", "search", "network")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(tiny_llama(tmp_path_factory.mktemp("llama")), device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of each kind; no two texts are alike."""
    folder = tmp_path_factory.mktemp("sets")
    rng = random.Random(0)

    def text(number: int) -> str:
        return " ".join([*rng.sample(WORDS, 5), str(number)])

    def lines(name: str, records: list[dict[str, Any]]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    lines("beir/corpus.jsonl", [{"_id": f"d{i}", "title": f"t{i}", "text": text(i)} for i in range(150)])
    lines("beir/queries.jsonl", [{"_id": f"q{i}", "text": text(1000 + i)} for i in range(20)])
    (folder / "beir/qrels").mkdir()
    judged = {(q, rng.randrange(150)): rng.randint(0, 2) for q in range(20) for _ in range(6)}
    judged |= {(q, 7 * q): 1 for q in range(20)}
    (folder / "beir/qrels/test.tsv").write_text("".join(f"q{q}\td{d}\t{g}\n" for (q, d), g in judged.items()))
    for part, count in (("train", 120), ("test", 60)):
        lines(f"classes/{part}.jsonl", [{"text": text(i), "label": CLASSES[i % 3]} for i in range(count)])
    lines("pairs.jsonl", [{"sentence1": text(i), "sentence2": text(-i), "label": i % 2} for i in range(80)])
    lines(
        "candidates.jsonl",
        [
            {"query": text(i), "positive": [text(i) for _ in range(3)], "negative": [text(-i) for _ in range(9)]}
            for i in range(12)
        ],
    )
    (folder / "sts.csv").write_text("".join(f"{text(i)},{text(-i)},{rng.uniform(0, 5):.2f}\n" for i in range(60)))
    return folder


def theirs(encoder: TextEncoder, kind: str, place: Path) -> dict[str, float]:
    prompts = MtebPrompts(sides="none")
    model = MtebModel(encoder.encode, name="small llama", fingerprint=encoder.fingerprint, prompts=prompts)
    return mteb_tasks.run(model, mteb_tasks.local_task(kind, "Small", str(place)))


def test_retrieval_is_scored_as_by_mteb(encoder: TextEncoder, data: Path) -> None:
    task = load_beir(str(data / "beir"))
    search = ExactSearch(encoder.encode(list(task.queries)), DEPTH)
    ids: list[str] = []
    for batch_ids, texts in task.corpus.batches():
        ids.extend(batch_ids)
        search.add(encoder.encode([text.replace("\n", " ") for text in texts]))  # mteb joins a title by a space
    ours = evaluate(search.rows_QK, ids, task.query_ids, task.qrels)
    found = theirs(encoder, "Retrieval", data / "beir")
    # mteb rounds what it averages over queries to five digits: the same number, so rounded.
    assert round(ours["ndcg@10"].mean(), 5) == pytest.approx(found["main_score"], abs=1e-9)
    assert round(ours["recall@100"].mean(), 5) == pytest.approx(found["recall_at_100"], abs=1e-9)
    assert 0 < found["main_score"] < 1


def test_similarity_is_scored_as_by_mteb(encoder: TextEncoder, data: Path) -> None:
    pairs = read_pairs(str(data / "sts.csv"))
    ours = vector_tasks.similarity(encoder.encode(pairs.first), encoder.encode(pairs.second), pairs.scores)
    assert ours.value == pytest.approx(theirs(encoder, "STS", data / "sts.csv")["main_score"], abs=1e-6)
    assert ours.estimate.low < ours.value < ours.estimate.high


def test_classification_is_scored_as_by_mteb(encoder: TextEncoder, data: Path) -> None:
    train, test = read_split(str(data / "classes"))
    vectors = encoder.encode(train.texts)
    needed = {place: vectors[place] for chosen in vector_tasks.chosen_texts(train.labels) for place in chosen}
    ours = vector_tasks.classification(needed, train.labels, encoder.encode(test.texts), test.labels)
    assert ours.value == pytest.approx(theirs(encoder, "Classification", data / "classes")["main_score"], abs=1e-6)


def test_clustering_is_scored_as_by_mteb(encoder: TextEncoder, data: Path) -> None:
    found = read_labelled(str(data / "classes/train.jsonl"))
    ours = vector_tasks.clustering(encoder.encode(found.texts), found.labels)
    main = theirs(encoder, "Clustering", data / "classes/train.jsonl")["main_score"]
    assert ours.value == pytest.approx(main, abs=1e-6)


def test_pairs_are_scored_as_by_mteb(encoder: TextEncoder, data: Path) -> None:
    pairs = read_labelled_pairs(str(data / "pairs.jsonl"))
    ours = vector_tasks.pair_classification(encoder.encode(pairs.first), encoder.encode(pairs.second), pairs.labels_N)
    found = theirs(encoder, "PairClassification", data / "pairs.jsonl")
    assert ours.value == pytest.approx(found["main_score"], abs=1e-6)


def test_reranking_is_scored_as_by_mteb(encoder: TextEncoder, data: Path) -> None:
    found = read_candidates(str(data / "candidates.jsonl"))
    documents = dict(zip(found.documents, encoder.encode(list(found.documents.values())), strict=True))
    queries = dict(zip(found.queries, encoder.encode(list(found.queries.values())), strict=True))
    run: Mapping[str, Mapping[str, float]] = {
        query: {document: float(queries[query] @ documents[document]) for document in candidates}
        for query, candidates in found.candidates.items()
    }
    scores = theirs(encoder, "Reranking", data / "candidates.jsonl")
    for metric, name in (("AP@1000", "main_score"), ("nDCG@10", "ndcg_at_10")):
        value = vector_tasks.reranking(run, found.qrels, metric).value
        assert round(value, 5) == pytest.approx(scores[name], abs=1e-9)


def test_instructions_stand_before_queries_and_before_texts_that_are_alike() -> None:
    prompts = MtebPrompts()
    scifact = mteb_tasks.get_task("SciFact").metadata
    assert prompts.instruction(scifact, "query") == (
        "Given a scientific claim, retrieve documents that support or refute the claim"
    )
    assert prompts.instruction(scifact, "document") is None
    stsb = mteb_tasks.get_task("STSBenchmark").metadata
    assert prompts.instruction(stsb, None) == "Retrieve semantically similar text."
    assert prompts.replace(sides="none").instruction(stsb, None) is None
    own = prompts.replace(sides="both", instructions={"SciFact": "Find proof"})
    assert own.instruction(scifact, "document") == own.instruction(scifact, "query") == "Find proof"


def test_the_suites_are_those_of_mteb_and_of_the_paper() -> None:
    import mteb

    known = {task.metadata.name for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
    assert set(tasks_of("mteb-paper-56")) == known
    assert len(known) == 56
    assert len(tasks_of("mteb-paper-15")) == 15
    assert all(set(names) <= set(PAPER_56[kind]) for kind, names in PAPER_15.items())
    for name, row in PAPER_TABLE.items():
        weights = [len(PAPER_56[kind]) for kind in PAPER_56]
        assert np.average(row[:-1], weights=weights) == pytest.approx(row[-1], abs=0.25), name


def test_splits_and_subsets_are_those_of_the_benchmark_of_the_paper() -> None:
    """mteb's task by itself names validation first, of AmazonCounterfactual the extended set too."""
    import mteb

    for theirs in mteb.get_benchmark("MTEB(eng, v1)").tasks:
        ours = mteb_tasks.get_task(theirs.metadata.name)
        assert list(ours.eval_splits) == list(theirs.eval_splits), theirs.metadata.name
        assert list(ours.hf_subsets) == list(theirs.hf_subsets), theirs.metadata.name


@pytest.mark.parametrize(
    ("name", "split", "subsets"),
    [
        ("STSBenchmark.v2", "test", ["default"]),
        ("STS22.v2", "test", ["en"]),
        ("BelebeleRetrieval", "test", ["eng_Latn-eng_Latn"]),
        ("BrowseCompPlusRetrieval", "test", ["gold_only", "gold_and_evidence"]),
        ("MassiveIntentClassification", "test", ["en"]),
        ("MSMARCO", "dev", ["default"]),
    ],
)
def test_other_tasks_are_of_the_test_split_and_of_english_alone(name: str, split: str, subsets: list[str]) -> None:
    task = mteb_tasks.get_task(name)
    assert (list(task.eval_splits), list(task.hf_subsets)) == ([split], subsets)


def test_the_data_of_a_task_has_a_name_that_changes_with_it() -> None:
    task = mteb_tasks.get_task("MTOPIntentClassification")
    (before,) = mteb_tasks.data_of(task)
    assert before == f"{task.metadata.dataset['path']}@{task.metadata.revision} test en"
    assert mteb_tasks.data_of(task.filter_eval_splits(["validation"])) != [before]
    assert len(mteb_tasks.data_of(mteb_tasks.get_task("CQADupstackRetrieval"))) == 12


def test_a_task_of_several_subsets_is_their_mean(encoder: TextEncoder, data: Path, tmp_path: Path) -> None:
    lines = (data / "sts.csv").read_text().splitlines(keepends=True)
    model = MtebModel(encoder.encode, name="x", fingerprint=encoder.fingerprint)
    scores, sets = [], {}
    for name, part in (("en-as", lines[:30]), ("en-bn", lines[30:])):
        (tmp_path / f"{name}.csv").write_text("".join(part))
        task = mteb_tasks.get_task("IndicCrosslingualSTS", str(tmp_path / f"{name}.csv"))
        scores.append(mteb_tasks.run(model, task)["main_score"])
        (sets[name],) = task.dataset.values()
    task.hf_subsets, task.dataset = list(sets), sets
    assert mteb_tasks.run(model, task)["main_score"] == pytest.approx(sum(scores) / 2)


def test_a_task_of_mteb_takes_local_data(encoder: TextEncoder, data: Path) -> None:
    task = mteb_tasks.get_task("Banking77Classification", str(data / "classes"))
    model = MtebModel(encoder.encode, name="x", fingerprint=encoder.fingerprint)
    found = mteb_tasks.run(model, task)
    assert 0 < found["main_score"] <= 1
    assert model.instructions["Banking77Classification"] == {
        "Given a online banking query, find the corresponding intents"
    }


def test_absent_data_and_unknown_names_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that does not answer is found out once, and not waited for again."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    mteb_tasks._hub_answers.cache_clear()
    with pytest.raises(UserError, match=r"the data of STSBenchmark .* --set local\.STSBenchmark=PATH"):
        mteb_tasks.load(mteb_tasks.get_task("STSBenchmark"))
    with pytest.raises(UserError, match="MTEB has no English task 'STSBenchmrk'"):
        mteb_tasks.get_task("STSBenchmrk")
    with pytest.raises(UserError, match="local data is for Retrieval"):
        mteb_tasks.get_task("SummEval", str(tmp_path))
    mteb_tasks._hub_answers.cache_clear()
