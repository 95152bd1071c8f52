"""What Prometheus is told of a run, beside Ray's own numbers: records by outcome, tokens, seconds of each step.

Counted in the driver as units are committed; exported by Ray's agent of that node as `ray_rayvec_embed_…`.
`infra/grafana/embedding.json` draws them. Knows Ray's metrics. Knows no pipeline.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from rayvec.encoding.sink import Record
from rayvec.encoding.spent import STEPS, Spent
from rayvec.uris import in_ascii


class RunMetrics:
    """Counters of one run. Ray must be running."""

    def __init__(self, output: str, units: int, done: int) -> None:
        output = in_ascii(output)
        self._units, self._done = units, done
        self._records = self._counter("records", "Records of the input, by what became of them", "outcome", output)
        self._quarantined = self._counter("quarantined", "Records quarantined, by reason", "reason", output)
        self._tokens = self._counter("tokens", "Tokens given to the encoders", "", output)
        self._seconds = self._counter("seconds", "Seconds that workers were busy, by step", "step", output)
        self._ratio = Gauge("rayvec_embed_done_ratio", "Share of the units that are committed", tag_keys=("output",))
        self._ratio.set_default_tags({"output": output})
        self._ratio.set(done / max(units, 1))

    def add(self, record: Record, spent: Spent) -> None:
        """Another unit is committed."""
        self._done += 1
        self._ratio.set(self._done / max(self._units, 1))
        for outcome, count in (
            ("embedded", record.documents),
            ("quarantined", record.quarantined),
            ("duplicate", record.duplicates),
        ):
            self._count(self._records, count, {"outcome": outcome})
        for reason, count in record.reasons.items():
            self._count(self._quarantined, count, {"reason": reason})
        self._count(self._tokens, record.tokens, {})
        for step in STEPS:
            self._count(self._seconds, getattr(spent, step), {"step": step})

    @staticmethod
    def _counter(name: str, description: str, tag: str, output: str) -> Counter:
        counter = Counter(f"rayvec_embed_{name}", description, tag_keys=tuple(filter(None, ("output", tag))))
        counter.set_default_tags({"output": output})
        return counter

    @staticmethod
    def _count(counter: Counter, value: float, tags: dict[str, str]) -> None:
        if value > 0:  # Ray refuses to count nothing
            counter.inc(value, tags)
