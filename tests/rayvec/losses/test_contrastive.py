"""InfoNCE against a float64 computation written out here; what is no negative."""

from __future__ import annotations

import math

import pytest
import torch

from rayvec.losses.contrastive import alignment, false_negatives, info_nce, uniformity

torch.set_num_threads(1)


def _plain(queries: torch.Tensor, documents: torch.Tensor, positives: list[int], scale: float) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    total = 0.0
    for query, positive in zip(queries.double().tolist(), positives, strict=True):
        logits = [scale * cosine(query, document) for document in documents.double().tolist()]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[positive]
    return total / len(positives)


def test_equals_a_plain_float64_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(4, 6, generator=generator), torch.randn(12, 6, generator=generator)
    result = info_nce(queries, documents, torch.arange(4), scale=20.0)
    assert float(result.loss) == pytest.approx(_plain(queries, documents, [0, 1, 2, 3], 20.0), rel=1e-6)


def test_accuracy_is_the_share_of_positives_that_come_first() -> None:
    documents = torch.eye(3)
    queries = torch.stack([documents[0], documents[0], documents[2]])
    assert float(info_nce(queries, documents, torch.arange(3), scale=1.0).accuracy) == pytest.approx(2 / 3)


def test_ignored_documents_do_not_count() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, documents = torch.randn(2, 3, generator=generator), torch.randn(3, 3, generator=generator)
    ignored = torch.tensor([[False, False, True], [False, False, True]])
    with_ignored = info_nce(queries, documents, torch.arange(2), scale=5.0, ignored_BN=ignored).loss
    assert float(with_ignored) == pytest.approx(_plain(queries, documents[:2], [0, 1], 5.0), rel=1e-6)


def test_duplicates_of_the_positive_are_no_negatives() -> None:
    # Documents: positives of queries 0, 1, 2, then a hard negative; the texts of columns 0 and 3 are equal.
    ignored = false_negatives(
        torch.tensor([10, 11, 12]), torch.arange(3), torch.tensor([1, 2, 3, 1]), torch.tensor([10, 11, 12, -1])
    )
    assert ignored.tolist() == [[False, False, False, True], [False] * 4, [False] * 4]


def test_the_positive_of_an_equal_query_is_no_negative() -> None:
    ignored = false_negatives(torch.tensor([7, 7]), torch.arange(2), torch.tensor([1, 2]), torch.tensor([7, 7]))
    assert ignored.tolist() == [[False, True], [True, False]]


def test_alignment_of_equal_views_is_zero() -> None:
    rows = torch.randn(4, 5)
    assert float(alignment(rows, 3 * rows)) == pytest.approx(0.0, abs=1e-6)


def test_uniformity_of_two_opposite_vectors() -> None:
    assert float(uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))) == pytest.approx(-8.0)
