from __future__ import annotations

import math

import numpy as np
import pytest

from rayvec.evaluation.retrieval import DEPTH, METRICS, estimates, evaluate

IDS = [f"d{i}" for i in range(200)]


def one(ranking: list[int], judged: dict[str, int]) -> dict[str, float]:
    found = evaluate(np.array([ranking]), IDS, ["q"], {"q": judged})
    return {name: float(values[0]) for name, values in found.items()}


def test_values_worked_out_by_hand() -> None:
    found = one([5, 1, 7, 2], {"d1": 2, "d2": 1, "d9": 1})
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found == pytest.approx(
        {
            "ndcg@10": (2 / math.log2(3) + 1 / math.log2(5)) / ideal,
            "recall@10": 2 / 3,
            "recall@100": 2 / 3,
            "mrr": 1 / 2,
        }
    )


@pytest.mark.parametrize(("rank", "at_10", "at_100"), [(9, 1, 1), (10, 0, 1), (99, 0, 1), (100, 0, 0)])
def test_recall_looks_so_deep_and_no_deeper(rank: int, at_10: int, at_100: int) -> None:
    ranking = [i for i in range(120) if i != 150]
    ranking[rank] = 150
    found = one(ranking, {"d150": 1})
    assert (found["recall@10"], found["recall@100"]) == (at_10, at_100)


def test_places_without_a_result_are_passed_over() -> None:
    assert one([3, -1, -1], {"d3": 1})["mrr"] == 1.0


def test_a_query_that_found_nothing_counts_zero() -> None:
    assert set(one([-1], {"d3": 1}).values()) == {0.0}


def test_the_order_given_is_the_order_judged() -> None:
    """trec_eval breaks ties of scores by document id; ranks have none."""
    assert one([1, 2], {"d1": 1})["mrr"] == 1.0
    assert one([2, 1], {"d1": 1})["mrr"] == 0.5


@pytest.mark.parametrize(("judged", "mrr"), [({"d2": 1}, 1.0), ({"d2": 1, "d1": 0}, 1.0), ({"d2": 1, "d1": 1}, 1.0)])
def test_a_query_that_is_a_document_does_not_find_itself_unless_it_is_the_answer(
    judged: dict[str, int], mrr: float
) -> None:
    found = evaluate(np.array([[1, 2]]), IDS, ["d1"], {"d1": judged})
    assert found["mrr"].tolist() == [mrr]
    assert found["ndcg@10"].tolist() == [1.0]


def test_a_query_that_is_a_document_is_looked_at_as_deep_as_any_other() -> None:
    found = evaluate(np.arange(DEPTH + 1)[None], IDS, ["d0"], {"d0": {f"d{DEPTH}": 1}})
    assert found["recall@100"].tolist() == [1.0]


def test_a_document_that_is_found_again_counts_where_it_stands_first() -> None:
    found = evaluate(np.array([[0, 1, 2]]), ["a", "b", "a"], ["q"], {"q": {"a": 1}})
    assert (found["mrr"].tolist(), found["ndcg@10"].tolist()) == ([1.0], [1.0])
    found = evaluate(np.array([[0, 1, 2]]), ["a", "a", "b"], ["q"], {"q": {"b": 1}})
    assert found["mrr"].tolist() == [0.5]


def test_values_stand_in_the_order_of_the_queries() -> None:
    found = evaluate(np.array([[0], [1], [2]]), IDS, ["b", "a", "c"], {"a": {"d9": 1}, "b": {"d0": 1}, "c": {"d2": 1}})
    assert found["mrr"].tolist() == [1.0, 0.0, 1.0]
    assert list(estimates(found)) == list(METRICS)
