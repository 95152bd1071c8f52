"""Capacity: arithmetic that people can follow, and what it refuses."""

from __future__ import annotations

import pytest

from pipelines.capacity import CapacityConfig, capacity
from rayvec.errors import UserError

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
