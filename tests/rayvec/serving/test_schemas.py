"""What answers may carry: a payload holds whatever a table can, and JSON cannot hold all of that."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

import pytest

from rayvec.serving.schemas import Hit, SearchResult


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (float("nan"), None), (float("-inf"), None), ([{"a": float("nan")}], [{"a": None}]), (b"\xff\xfe", "__4="),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"), (datetime.date(2026, 1, 2), "2026-01-02"),
        (decimal.Decimal("1.50"), "1.50"), (2**63, 2**63), (None, None), ("日本", "日本"),
    ],
)  # fmt: skip
def test_any_payload_becomes_json(value: Any, sent: Any) -> None:
    answer = SearchResult(hits=[Hit(rank=1, id="a", score=1.0, payload={"x": value})])
    assert json.loads(answer.model_dump_json())["hits"][0]["payload"] == {"x": sent}
