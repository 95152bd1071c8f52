"""Search among the documents that pass a filter: the same as among an index of those alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from rayvec.errors import UserError
from rayvec.indexing import searcher
from rayvec.indexing.filters import Filter
from rayvec.indexing.searcher import Index
from tests.artifacts import random_vectors, texts_for, write_index

COUNT, DIM = 600, 16
VECTORS = random_vectors(COUNT, DIM)
QUERIES = random_vectors(20, DIM, seed=5)
ADAPTER: TypeAdapter[Filter] = TypeAdapter(Filter)


@pytest.fixture(scope="module", params=["Flat", "IVF16,Flat", "HNSW16"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    search = {"IVF16,Flat": {"nprobe": 4}, "HNSW16": {"ef_search": 32}}.get(request.param, {})
    write_index(folder, VECTORS, texts_for(COUNT), factory=request.param, pieces=2, search=search)
    return Index.open(folder, threads=1)


def lines(low: int, high: int) -> Filter:
    return ADAPTER.validate_python({"field": "line", "gte": low, "lt": high})


@pytest.mark.parametrize(("low", "high"), [(0, 600), (100, 160), (299, 303), (595, 600)])
def test_few_are_compared_one_by_one_and_none_is_missed(index: Index, low: int, high: int) -> None:
    selection = index.select(lines(low, high))
    assert selection.count == high - low
    found = index.dense(QUERIES, 10, selection)
    k = min(10, high - low)
    expected = low + np.argsort(-(QUERIES @ VECTORS[low:high].T), axis=1, kind="stable")[:, :k]
    assert found.rows.tolist() == expected.tolist()


def test_a_wider_search_finds_only_what_passes_and_k_of_it(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "COMPARED_ONE_BY_ONE", 0)
    found = index.dense(QUERIES, 10, index.select(lines(200, 400)))
    assert ((found.rows >= 200) & (found.rows < 400)).all()
    expected = 200 + np.argsort(-(QUERIES @ VECTORS[200:400].T), axis=1)[:, :10]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.rows.tolist(), expected.tolist(), strict=True)]
    assert np.mean(shares) > 0.9


def test_lexical_search_finds_only_what_passes_in_the_order_of_the_whole(index: Index) -> None:
    everything = index.lexical(["sort the list"], COUNT).hits(0)
    among = index.lexical(["sort the list"], COUNT, index.select(lines(100, 300))).hits(0)
    assert [row for row, _ in among] == [row for row, _ in everything if 100 <= row < 300]
    np.testing.assert_allclose([s for _, s in among], [s for r, s in everything if 100 <= r < 300], rtol=1e-5)


def test_a_filter_that_none_passes_finds_nothing(index: Index) -> None:
    selection = index.select(lines(COUNT, COUNT + 1))
    assert selection.count == 0
    assert index.dense(QUERIES, 10, selection).rows.shape == (len(QUERIES), 0)
    assert index.lexical(["sort"], 10, selection).hits(0) == []


def test_a_selection_is_kept_for_the_next_request(index: Index) -> None:
    assert index.select(lines(1, 9)) is index.select(lines(1, 9))


def test_texts_are_not_filtered_by_since_all_of_them_would_be_read_into_memory(index: Index) -> None:
    filter_ = {"or": [{"field": "line", "eq": 1}, {"not": {"field": "text", "eq": "x"}}]}
    with pytest.raises(
        UserError, match="filter: text is searched and not filtered by; filter by one of id, title, line"
    ):
        index.select(ADAPTER.validate_python(filter_))
    assert not index._documents._files[0]._columns.keys() & {"text"}


@pytest.mark.parametrize("filter_", [{"field": "nope", "eq": 1}, {"field": "line", "eq": "one"}])
def test_what_the_documents_do_not_have_is_refused_by_name(index: Index, filter_: Any) -> None:
    with pytest.raises(UserError, match=f"filter: .*{filter_['field']}"):
        index.select(ADAPTER.validate_python(filter_))
