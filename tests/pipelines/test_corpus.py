"""So many documents of a corpus: which ones, and that the others do not stay in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import _corpus, adaptation, analyses, measure
from pipelines._corpus import SPARE, Spread, spread, tables
from rayvec.data.source_config import SourceConfig

DOCUMENTS, LETTERS = 8000, 1000


@pytest.mark.parametrize("count", [0, 1, 10, 11, 39, 40])
def test_of_few_they_lie_at_equal_distances(count: int) -> None:
    chosen: Spread[int] = Spread(10)
    for value in range(count):
        chosen.add(value)
    assert chosen.picked() == spread(range(count), 10)
    assert chosen.picked(3) == spread(range(count), 3)


@pytest.mark.parametrize("count", [41, 100, 1000, 12345])
def test_of_many_they_are_spread_over_all_and_few_are_kept(count: int) -> None:
    chosen: Spread[int] = Spread(10)
    for value in range(count):
        chosen.add(value)
        assert len(chosen._kept) <= SPARE * 10
    found = chosen.picked()
    assert len(found) == 10 and found == sorted(set(found))
    gaps = [b - a for a, b in zip(found, [*found[1:], count], strict=True)]
    assert found[0] == 0 and max(gaps) <= 1.6 * count / 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """Eight megabytes of texts that all differ."""
    path: Path = tmp_path_factory.mktemp("corpus") / "docs.parquet"
    sentence = "Read a line of the file and return it. "
    texts = [f"Say what number {i} stands for.\n\n" + f"{i} {sentence}" * (LETTERS // 44) for i in range(DOCUMENTS)]
    rows = {
        "id": [f"d{i}" for i in range(DOCUMENTS)],
        "title": [f"number {i}" for i in range(DOCUMENTS)],
        "text": texts,
    }
    pq.write_table(pa.table(rows), path, row_group_size=500)
    return SourceConfig(path=str(path))


def test_the_choice_does_not_follow_from_the_units(corpus: SourceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = analyses._texts(corpus, 50, "")
    monkeypatch.setattr(_corpus, "UNIT_ROWS", 500)
    assert len(list(tables(corpus, ""))) == DOCUMENTS // 500
    assert analyses._texts(corpus, 50, "") == whole


def _map(corpus: SourceConfig) -> int:
    return len(analyses._texts(corpus, 50, ""))


def _adaptation(corpus: SourceConfig) -> int:
    config = adaptation.AdaptationConfig(source=corpus, max_documents=50, max_queries=50)
    return len(adaptation.load_corpus(config, "").ids)


def _measured(corpus: SourceConfig) -> int:
    config = measure.MeasureConfig(data=corpus.where, output="scores.json", max_queries=50)
    return len(measure.load_task(config).query_ids)


@pytest.mark.parametrize("picked", [_map, _adaptation, _measured])
def test_what_is_not_picked_does_not_stay_in_memory(
    corpus: SourceConfig, monkeypatch: pytest.MonkeyPatch, picked: Callable[[SourceConfig], int]
) -> None:
    monkeypatch.setattr(_corpus, "UNIT_ROWS", 500)
    picked(corpus)  # what is imported on the way does not count
    tracemalloc.start()
    try:
        assert picked(corpus) == 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < DOCUMENTS * LETTERS / 2
