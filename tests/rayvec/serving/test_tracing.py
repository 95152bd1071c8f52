"""Spans, as a collector receives them over HTTP, and the recall of an index that serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rayvec.indexing.searcher import Index
from rayvec.serving.recall import recall_now
from rayvec.serving.tracing import Tracer, answered
from tests.artifacts import random_vectors, texts_for, write_index
from tests.services import Client

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    spans: list[Span] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_s_spans_stand_below_the_caller_s(collector: tuple[str, list[Span]], index: Path) -> None:
    address, spans = collector
    client = Client(index, traces=address)
    try:
        body = {"query": "a very private question", "mode": "hybrid"}
        assert client.ask("POST", "/v1/search", json=body, headers={"traceparent": PARENT}).status_code == 200
        assert client.get("/v1/nothing").status_code == 404
    finally:
        client.gateway.tracer.close()
        client.close()
    named = {span.name: span for span in spans}
    root = named["POST /v1/search"]
    assert root.trace_id.hex() == PARENT.split("-")[1] and root.parent_span_id.hex() == PARENT.split("-")[2]
    for part in ("encode", "search"):
        assert named[part].parent_span_id == root.span_id and named[part].trace_id == root.trace_id
    attributes = {one.key: one.value for one in root.attributes}
    assert attributes["http.route"].string_value == "/v1/search"
    assert attributes["http.response.status_code"].int_value == 200
    assert "GET other" in named and not any("private" in str(span) for span in spans)


def test_without_a_collector_nothing_is_recorded() -> None:
    with Tracer().request("GET", httpx.Headers()) as span:  # type: ignore[arg-type]
        answered(span, "GET", "/ready", 200, "id")
        assert not span.is_recording()


@pytest.mark.parametrize(("probes", "least", "most"), [(1, 0.0, 0.9), (16, 1.0, 1.0)])
def test_recall_is_looked_at_while_it_serves(tmp_path: Path, probes: int, least: float, most: float) -> None:
    vectors = random_vectors(400, 16, clusters=1)
    write_index(tmp_path, vectors, texts_for(400), "IVF16,Flat", search={"nprobe": probes})
    looks = [recall_now(Index.open(tmp_path), seed) for seed in range(5)]
    assert least <= np.mean([look for look in looks if look is not None]) <= most
