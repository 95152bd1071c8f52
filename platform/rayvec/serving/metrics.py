"""What Prometheus is told of a gateway: requests, time by stage, tokens, cache, index version.

Of one process; a service of several gateways answers `/metrics` with those of whichever is asked, told apart by the
label `replica`. Knows numbers and names. Knows no route's meaning, no model, no index.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rayvec.serving.batcher import Batched

Stage = Literal["encode", "search", "rerank"]
#: Seconds of the stages of the request that is under way, where its observer writes them down.
STAGES: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)

#: Seconds; a search takes milliseconds, a request that waits takes seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Powers of two; texts are packed without padding, so that a batch is its tokens and no more.
TOKENS = tuple(2.0**power for power in range(3, 18))
REQUESTS = tuple(2.0**power for power in range(9))
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one gateway, in a registry of their own. Those of every request are looked up here once.

    replica: unlike any other gateway's, wherever that runs (processes of two pods have the same numbers).
    """

    def __init__(self, replica: str = "") -> None:
        self.registry = CollectorRegistry()
        self._replica = replica or uuid.uuid4().hex[:8]
        self._requests = self._counter("requests", "Requests answered", "route", "status")
        self._seconds = self._histogram("request_seconds", "Seconds from arrival to answer", "route")
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        stages = self._histogram("stage_seconds", "Seconds of a part of a request", "stage")
        self._stages = {stage: stages.labels(self._replica, stage) for stage in get_args(Stage)}
        self._tokens = self._counter("encoded_tokens", "Tokens that the encoder has read").labels(self._replica)
        cache = self._counter("query_cache", "Query vectors asked of the cache", "outcome")
        self._hits, self._misses = (cache.labels(self._replica, outcome) for outcome in ("hit", "miss"))
        self._in_flight = self._gauge("requests_in_flight", "Requests that are being answered").labels(self._replica)
        self._queue, self._batch_tokens, self._batch_requests = (
            self._histogram(name, help_, buckets=buckets).labels(self._replica)
            for name, help_, buckets in (
                ("queue_seconds", "Seconds that texts waited for the encoder", BUCKETS),
                ("batch_tokens", "Tokens of a request's batch", TOKENS),
                ("batch_requests", "Requests of a request's batch", REQUESTS),
            )
        )
        self._recall = self._gauge("index_recall", "Share of true neighbours found, of a few vectors searched lately")
        self._refused = self._gauge("index_refused", "1 while a newer version of the index is there and not served")
        self._incomplete = self._counter("incomplete_answers", "Answers without some part of the vectors")
        self._documents = self._counter("written_documents", "Documents that writes were about", "outcome")
        self._writes = self._histogram(
            "write_stage_seconds", "Seconds of a part of the version that a write went into", "stage"
        )
        self._version: str | None = None
        self._index = self._gauge("index_info", "1 for the index version that answers", "version")

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = self._answers.get((route, status))
        if known is None:  # as many as there are routes and statuses
            known = (
                self._requests.labels(self._replica, route, str(status)),
                self._seconds.labels(self._replica, route),
            )
            self._answers[route, status] = known
        count, took = known
        count.inc()
        took.observe(seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Count the time that a part of a request took."""
        self._stages[stage].observe(seconds)
        if (of_request := STAGES.get()) is not None:
            of_request[stage] = seconds

    def encoded(self, tokens: int) -> None:
        """Count what the encoder has read."""
        self._tokens.inc(tokens)

    def cached(self, hits: int, misses: int) -> None:
        """Count what the cache of queries had, and what it had not."""
        self._hits.inc(hits)
        self._misses.inc(misses)

    def wrote(self, documents: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """Count a write: documents by what became of them, and the time of each stage of its version."""
        for outcome, count in documents.items():
            self._documents.labels(self._replica, outcome).inc(count)
        for stage, value in seconds.items():
            self._writes.labels(self._replica, stage).observe(value)

    def batched(self, batch: Batched | None) -> None:
        """Count the batch that a request's texts were encoded in, and how long they waited for it."""
        if batch is not None:
            self._queue.observe(batch.waited_seconds)
            self._batch_tokens.observe(batch.tokens)
            self._batch_requests.observe(batch.items)

    def looked(self, recall: float | None, *, refused: bool) -> None:
        """Set what the index says of itself: the recall it found when it last looked, if it did."""
        if recall is not None:
            self._recall.labels(self._replica).set(recall)
        self._refused.labels(self._replica).set(refused)

    def incomplete(self) -> None:
        """Count an answer that parts of the vectors are missing from."""
        self._incomplete.labels(self._replica).inc()

    def in_flight(self, count: int) -> None:
        """Set how many requests are being answered."""
        self._in_flight.set(count)

    def index(self, version: str) -> None:
        """Set the version that answers."""
        if version != self._version:
            self._version = version
            self._index.clear()
            self._index.labels(self._replica, version).set(1)

    def render(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"rayvec_{name}", help_, ["replica", *labels], registry=self.registry)

    def _histogram(self, name: str, help_: str, *labels: str, buckets: Sequence[float] = BUCKETS) -> Histogram:
        return Histogram(f"rayvec_{name}", help_, ["replica", *labels], registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(f"rayvec_{name}", help_, ["replica", *labels], registry=self.registry)
