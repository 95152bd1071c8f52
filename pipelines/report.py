"""Report: what a run did, as one JSON object and a few readable lines."""

from __future__ import annotations

from typing import Any

#: Plain JSON values. The keys `output` and `next` are printed last: where the result lies, what to run next.
Report = dict[str, Any]


def recipe_family(encoder: str) -> str:
    """The family of recipes that index and serve what an encoder, as it was named, has embedded.

    >>> recipe_family("hash:64"), recipe_family("tiny")
    ('hash', 'tiny')
    """
    return "hash" if encoder.partition(":")[0] == "hash" else "tiny"


def summary(report: Report) -> str:
    """The report as aligned lines; nested objects on one line, numbers with separators."""
    shown = {name: _value(value) for name, value in report.items() if value not in (None, {}, [])}
    width = max((len(name) for name in shown), default=0)
    last = [name for name in ("output", "next") if name in shown]
    order = [name for name in shown if name not in last] + last
    return "\n".join(f"  {name:<{width}}  {shown[name]}" for name in order)


def summary_line(values: Report) -> str:
    """A few values on one line.

    >>> summary_line({"rows": 1200, "recall@10": 0.98765})
    'rows 1,200, recall@10 0.9877'
    """
    return _value(values)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_value(inner) for inner in value)
    return str(value)
