"""What a request may ask of its hits: fusion, a least score, one of each kind, another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayvec.errors import UserError
from rayvec.modeling.hash_encoder import HashEncoder
from rayvec.serving.rerank import load_reranker
from tests.artifacts import texts_for, write_index
from tests.services import COUNT, MODEL, Client

QUERY = "sort the list in place"


def shortest_first(query: str, texts: Sequence[str]) -> list[float]:
    """A reranker for the tests: the shorter the better."""
    return [-float(len(text)) for text in texts]


def broken(query: str, texts: Sequence[str]) -> list[float]:
    return [float("nan")] * len(texts)


def found(client: Client, **asked: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/search", **{"query": QUERY, "k": COUNT, **asked})
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()["results"][0]["hits"]
    return hits


def refused(client: Client, **asked: Any) -> tuple[int, str]:
    answer = client.post("/v1/search", query=QUERY, **asked)
    return answer.status_code, answer.json()["error"]["param"]


@pytest.fixture(scope="module")
def reranking(index: Path) -> Iterator[Client]:
    client = Client(index, reranker=f"{__name__}:shortest_first")
    yield client
    client.close()


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_least_score_cuts_the_list_where_scores_fall_below_it(client: Client, mode: str) -> None:
    everything = found(client, mode=mode)
    bound = everything[len(everything) // 2]["score"]
    cut = found(client, mode=mode, min_score=bound)
    assert cut == [hit for hit in everything if hit["score"] >= bound]
    assert found(client, mode=mode, min_score=everything[0]["score"] + 1) == []


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_a_filter_leaves_what_passes(client: Client, mode: str) -> None:
    filter_ = {"or": [{"field": "line", "lt": 6}, {"field": "id", "in": ["doc-20", "doc-21"]}]}
    hits = found(client, mode=mode, filter=filter_)
    everything = [hit["id"] for hit in found(client, mode=mode)]
    passing = {f"doc-{row}" for row in [*range(6), 20, 21]}
    assert {hit["id"] for hit in hits} == passing & set(everything)
    assert found(client, mode=mode, filter={"field": "line", "gt": 10_000}) == []


def test_a_filter_that_cannot_be_is_refused(client: Client) -> None:
    for filter_ in ({"field": "nope", "eq": 1}, {"field": "line", "eq": "x"}, {"field": "text", "eq": QUERY}):
        assert refused(client, filter=filter_) == (422, "filter")
    deep: Any = {"field": "line", "eq": 1}
    for _ in range(50):
        deep = {"not": deep}
    answer = client.post("/v1/search", query=QUERY, filter=deep)
    assert answer.status_code == 422 and answer.json()["error"]["param"].startswith("filter")
    assert client.post("/v1/search", query=QUERY, filter={"field": "line"}).status_code == 422


def test_of_hits_with_one_value_only_the_best_is_kept_and_k_are_found_all_the_same(client: Client) -> None:
    everything = found(client, mode="dense")
    best: dict[str, str] = {}
    for hit in everything:
        best.setdefault(repr(hit["title"]) if hit["title"] else hit["id"], hit["id"])
    assert [hit["id"] for hit in found(client, mode="dense", unique_by="title")] == list(best.values())
    # Texts come four times over but for a number, so `line` is different everywhere and drops nothing.
    assert [hit["id"] for hit in found(client, mode="dense", unique_by="line", k=5)] == [
        hit["id"] for hit in everything[:5]
    ]


def test_unique_by_looks_deeper_until_there_are_k(tmp_path: Path) -> None:
    # 12 documents near the query share one text; the others come far below them, and are looked for.
    texts = [QUERY] * 12 + texts_for(8)
    encoder = HashEncoder(64)
    write_index(tmp_path, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder="hash:64")
    client = Client(tmp_path)
    kept = found(client, mode="dense", unique_by="text", k=4)
    client.close()
    assert len(kept) == 4 and len({hit["text"] for hit in kept}) == 4


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_unique_by_looks_no_deeper_than_is_allowed_and_then_answers_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from rayvec.indexing.searcher import Index
    from rayvec.serving.search import Options, search_index

    texts = [QUERY] * 60
    encoder = HashEncoder(64)
    vectors = encoder.encode(texts)
    write_index(tmp_path, vectors, texts, made_by=encoder.fingerprint, encoder="hash:64")
    index = Index.open(tmp_path, threads=1)
    asked: list[int] = []
    for name in ("dense", "lexical"):
        real = getattr(index, name)
        monkeypatch.setattr(
            index, name, lambda queries, k, *more, real=real: asked.append(k) or real(queries, k, *more)
        )
    monkeypatch.setattr("rayvec.serving.search.DEEPEST", 40)
    monkeypatch.setattr("rayvec.serving.search.ROWS_AT_MOST", 60)
    options: Any = Options(k=4, mode=mode, unique_by="text", include=())  # type: ignore[arg-type]
    [hits] = search_index(index, [QUERY], vectors[:1], options)
    assert len(hits) == 1 and max(asked) == 40
    # Two queries share the rows that may be looked through.
    asked.clear()
    answers = search_index(index, [QUERY] * 2, vectors[:2], options)
    assert [len(hits) for hits in answers] == [1, 1]
    assert mode == "hybrid" or max(asked) == 30
    assert all(set(hit.signals) == ({"dense", "lexical"} if mode == "hybrid" else set()) for hit in hits)


def test_only_the_hits_that_are_kept_have_their_signals_made(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayvec.serving import search

    made: list[int] = []
    real = search.Signal
    monkeypatch.setattr(search, "Signal", lambda **values: made.append(values["rank"]) or real(**values))
    client = Client(index)
    made.clear()
    hits = found(client, mode="hybrid", k=3)
    client.close()
    assert len(made) == sum(len(hit["signals"]) for hit in hits) <= 6


def test_reciprocal_ranks_and_weights_change_the_order_of_a_hybrid_search(client: Client) -> None:
    dense, lexical = ([hit["id"] for hit in found(client, mode=mode)] for mode in ("dense", "lexical"))
    by_ranks = found(client, fusion="rrf")
    expected = {
        id_: sum(1 / (61 + ranking.index(id_)) for ranking in (dense, lexical) if id_ in ranking) for id_ in dense
    }
    np.testing.assert_allclose([hit["score"] for hit in by_ranks], [expected[hit["id"]] for hit in by_ranks], rtol=1e-5)
    only_words = [hit["id"] for hit in found(client, dense_weight=0, k=len(lexical))]
    assert only_words[: len(lexical)] == lexical


def test_a_hybrid_order_stays_when_more_hits_are_asked_for(tmp_path: Path) -> None:
    """Words of which BM25 finds more documents than ten hits look through."""
    texts = [f"{'table ' * (1 + row % 7)} {'read ' * (row % 5)} {row} {'x ' * (row % 11)}" for row in range(600)]
    encoder = HashEncoder(64)
    write_index(tmp_path, encoder.encode(texts), texts, made_by=encoder.fingerprint, encoder="hash:64")
    client = Client(tmp_path)
    few, more = (found(client, query="read table", k=k) for k in (10, 50))
    assert [(hit["id"], hit["score"]) for hit in few] == [(hit["id"], hit["score"]) for hit in more[:10]]
    client.close()


def test_space_around_a_query_is_none_of_it(client: Client) -> None:
    assert all(found(client, query=query) == found(client) for query in (f" {QUERY}", f"{QUERY}\n"))


def test_a_reranker_orders_the_first_hits_and_leaves_the_rest(reranking: Client) -> None:
    before = found(reranking)
    after = found(reranking, rerank=5)
    lengths = [len(f"{hit['title'] or ''}{hit['text']}") for hit in after[:5]]
    assert lengths == sorted(lengths)
    assert {hit["id"] for hit in after[:5]} == {hit["id"] for hit in before[:5]}
    assert [hit["id"] for hit in after[5:]] == [hit["id"] for hit in before[5:]]
    assert [hit["rank"] for hit in after] == list(range(1, len(after) + 1))
    places = {hit["id"]: (hit["rank"], hit["score"]) for hit in before}
    assert all(
        (hit["signals"]["search"]["rank"], hit["signals"]["search"]["score"]) == places[hit["id"]] for hit in after[:5]
    )


def test_a_reranker_sees_more_than_is_answered(reranking: Client) -> None:
    shortest = min(found(reranking, k=20), key=lambda hit: (len(f"{hit['title'] or ''}{hit['text']}"), hit["rank"]))
    assert found(reranking, k=1, rerank=20)[0]["id"] == shortest["id"]


def test_more_pairs_than_one_request_may_have_reranked_are_refused(
    reranking: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayvec.serving.search.MAX_PAIRS", 10)
    for queries, status in ((2, 200), (3, 422)):
        answer = reranking.post("/v1/search", query=[QUERY] * queries, k=1, rerank=5)
        assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == "rerank" and "15 pairs" in answer.json()["error"]["message"]


def test_what_the_service_does_not_have_is_refused_by_name(client: Client) -> None:
    assert refused(client, rerank=3) == (422, "rerank")
    assert refused(client, unique_by="nope") == (422, "unique_by")
    assert refused(client, dense_weight=-1) == (422, "dense_weight")


def test_where_documents_are_windows_an_id_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    encoder = HashEncoder.parse(MODEL)
    texts, ids = texts_for(2), ["a#0", "a#1"]
    index = tmp_path / "index"
    write_index(
        index,
        encoder.encode(texts),
        texts,
        made_by=encoder.fingerprint,
        encoder=MODEL,
        ids=ids,
        extra={"parent_id": pa.array(["a", "a"])},
    )
    client = Client(index)
    try:
        assert client.get("/v1/documents/a%231").json()["id"] == "a#1"
        for refused in (client.get("/v1/documents/a"), client.post("/v1/search", like=["a"])):
            assert "windows, with ids such as 'ID#0'" in refused.json()["error"]["message"]
    finally:
        client.close()


def test_texts_are_put_in_the_order_of_the_reranker(reranking: Client, client: Client) -> None:
    texts = ["three words long", "a", "bb", "c"]
    best = reranking.post("/v1/rerank", query=QUERY, documents=texts, top_n=3, return_documents=True).json()
    assert [(one["index"], one["relevance_score"], one["document"]["text"]) for one in best["results"]] == [
        (1, -1.0, "a"), (3, -1.0, "c"), (2, -2.0, "bb")
    ]  # fmt: skip
    older = [{"text": text} for text in texts]
    extra = {"max_tokens_per_doc": 100, "max_chunks_per_doc": 1, "truncation": True, "rank_fields": ["text"]}
    for path, asked in (("/v2/rerank", texts), ("/v1/rerank", older)):
        same = reranking.post(path, query=QUERY, documents=asked, top_n=3, return_documents=True, model="m", **extra)
        assert same.json() == best
    without = client.post("/v1/rerank", query=QUERY, documents=texts)
    search = client.post("/v1/search", query=QUERY, rerank=3)
    for refusal, param in ((without, None), (search, "rerank")):
        error = refusal.json()["error"]
        assert (refusal.status_code, error["code"], error["param"]) == (422, "no_reranker", param)


def test_a_reranker_that_fails_is_no_answer(index: Path) -> None:
    client = Client(index, reranker=f"{__name__}:broken")
    answer = client.post("/v1/search", query=QUERY, rerank=3)
    client.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "reranker_failed")


@pytest.mark.parametrize("reference", ["nothing", "no.such.module:name", "math:nope", "math:pi", "cross-encoder:/none"])
def test_a_reranker_that_is_not_there_is_told_at_the_start(reference: str) -> None:
    with pytest.raises(UserError, match="reranker"):
        load_reranker(reference)


def test_a_cross_encoder_reranks(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    scores = load_reranker(f"cross-encoder:{tmp_path}")("a b", ["a", "b c d", "a"])
    assert len(scores) == 3 and scores[0] == pytest.approx(scores[2]) and scores[0] != pytest.approx(scores[1])
