"""Capacity: arithmetic that people can follow, what it refuses, and that it foretold what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig

from pipelines.capacity import ERRORS, QUERY_TOKENS, CapacityConfig, capacity
from rayvec.errors import UserError

#: The 118,151 arXiv abstracts (15.1 M tokens) by the embedded encoder, on the machine of benchmarks/RESULTS.md.
ARXIV = CapacityConfig(
    documents=118_151, tokens=15.1e6 / 118_151, encoder="tiny", device="cpu", workers=2, machine_cores=2
)
#: Operations a second of a float32 product on one core of it: alone, and as it was when 11.8 CPU-seconds were foretold.
ALONE, SHARED = 95e9, 38.2e9

LLAMA = CapacityConfig(documents=1_000_000, tokens=100, price_per_hour=2.0, workers=4)


def test_a_published_model_is_counted_without_being_there() -> None:
    report = capacity(LLAMA)
    # 6.98e9 weights beside the embeddings, 32 layers of 32 heads of 128: the paper's Llama-3-8B.
    operations = 2 * 6.98e9 + 4 * 100 * 32 * 32 * 128
    assert report["encode: tokens/s"] == pytest.approx(4 * 0.45 * 989e12 / operations, rel=0.01)
    assert report["index: dimensions"] == 4096 and report["disk: vectors"] == "8.2 GB"


def test_twice_the_documents_take_twice_the_hours_and_the_price() -> None:
    once, twice = capacity(LLAMA), capacity(LLAMA.replace(documents=2_000_000))
    assert twice["encode: hours"] == pytest.approx(2 * once["encode: hours"], abs=0.02)
    assert once["encode: price"] == pytest.approx(once["encode: hours"] * 4 * 2.0, rel=0.05)


def test_a_measured_rate_is_taken_as_it_is() -> None:
    report = capacity(LLAMA.replace(tokens_per_second=1_000.0))
    assert report["encode: tokens/s"] == 4_000 and report["encode: rate"] == "given"
    assert report["encode: hours"] == pytest.approx(1e8 / 4_000 / 3600, abs=0.01)


def test_a_budget_makes_codes_smaller_and_machines_fewer() -> None:
    large = LLAMA.replace(documents=100_000_000, dimensions=1024, machine_memory="64GB")
    whole, within = capacity(large), capacity(large.replace(memory_budget="20GB"))
    assert "RaBitQ" in within["index: factory"] and within["index: machines"] == 1 < whole["index: machines"]
    assert within["index: bytes_a_vector"] < 200 < whole["index: bytes_a_vector"]


def test_a_cpu_is_measured_here() -> None:
    report = capacity(LLAMA.replace(encoder="tiny", device="cpu"))
    assert report["encode: tokens/s"] > 0 and "measured on one core" in report["encode: rate"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"encoder": "nobody/knows-this"}, "its shape is not known"),
        ({"encoder": "hash:64"}, "tokens_per_second"),
        ({"dimensions": 5000}, "ask for fewer"),
        ({"memory_budget": "1MB"}, "raise the budget"),
        ({"memory_budget": "much"}, "not a number of bytes"),
    ],
)
def test_what_cannot_be_planned_says_what_would_do(changed: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        capacity(LLAMA.replace(**changed))


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the plan believe that a matrix product reaches so many operations a second here."""
    return lambda rate: monkeypatch.setattr("rayvec.indexing.estimate.measure_rate", lambda: rate)


def test_every_section_states_its_error() -> None:
    report = capacity(LLAMA)
    assert [report[f"{part}: error"] for part in ("encode", "index", "serve")] == [
        ERRORS["gpu"], ERRORS["index"], ERRORS["serve"],
    ]  # fmt: skip
    assert capacity(LLAMA.replace(tokens_per_second=1.0))["encode: error"] == ERRORS["given"]


def test_embedding_took_what_was_foretold_where_nothing_else_ran(product: Callable[[float], None]) -> None:
    product(ALONE)
    one = capacity(ARXIV.replace(workers=1))
    assert one["encode: error"] == ERRORS["cpu"] and "within a half" in ERRORS["cpu"]
    assert one["encode: tokens/s"] == pytest.approx(8_383, rel=0.5)
    # Two cores for a load of 10 to 30: that is not foretold, and said to be five times as long.
    assert 4_746 / 3600 / capacity(ARXIV)["encode: hours"] == pytest.approx(5, abs=0.5)
    assert "5 times" in ERRORS["cpu"]


def test_the_index_came_out_as_foretold(product: Callable[[float], None]) -> None:
    product(SHARED)
    report = capacity(ARXIV)
    assert "within a tenth" in ERRORS["index"] and "factor of two" in ERRORS["index"]
    assert (report["index: factory"], report["index: dimensions"]) == ("IVF1375,Flat", 256)
    assert float(report["index: bytes"].removesuffix(" MB")) == pytest.approx(123.350971, rel=0.1)
    assert 0.5 < report["index: build_core_hours"] * 3600 / 18.7 < 2
    assert 0.5 < report["index: milliseconds_a_query"] / 0.44 < 2


def test_searches_took_what_was_foretold(product: Callable[[float], None], tmp_path: Path) -> None:
    """serving_beside.py: a Llama of 6 × 512 and 20,000 documents; 84.5 searches a second on two cores."""
    product(ALONE)
    LlamaConfig(hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8).save_pretrained(
        tmp_path
    )
    plan = ARXIV.replace(documents=20_000, encoder=str(tmp_path), workers=1, queries_per_second=84.5)
    report = capacity(plan)
    foretold = 1000 * QUERY_TOKENS / report["encode: tokens/s"] + report["index: milliseconds_a_query"]
    assert "factor of two" in ERRORS["serve"] and 0.5 < foretold / 14.7 < 2
    assert report["serve: encoder_replicas"] == 2
