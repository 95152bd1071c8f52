"""Traces, if asked for: a span a request with one for each of its parts, sent to an OpenTelemetry collector by OTLP.

A request's `traceparent` header is taken up, so that its spans stand below those of the caller. No text, no id of a
document and no key is in a span. Without a collector there is one span for all, which does nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from rayvec.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "rayvec"
_PROPAGATOR = TraceContextTextMapPropagator()
#: Where there is no collector: OpenTelemetry's own span that does nothing.
_NO_SPAN = nullcontext(trace.INVALID_SPAN)


class Tracer:
    """Spans of one process. collector: the address that takes them, as "http://host:4318/v1/traces"; None for none."""

    def __init__(self, collector: str | None = None) -> None:
        self._provider = None if collector is None else _provider(collector)
        self._tracer = None if self._provider is None else self._provider.get_tracer(SERVICE)

    def request(self, method: str, headers: Headers) -> AbstractContextManager[Span]:
        """The span of a request; its route is named when it is answered."""
        if self._tracer is None:
            return _NO_SPAN
        parent = _PROPAGATOR.extract({"traceparent": headers.get("traceparent", "")})
        return self._tracer.start_as_current_span(method, parent, SpanKind.SERVER)

    def part(self, name: str) -> AbstractContextManager[Span]:
        """The span of a part of the request that is under way."""
        return _NO_SPAN if self._tracer is None else self._tracer.start_as_current_span(name)

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


def answered(span: Span, method: str, route: str, status: int, request_id: str) -> None:
    """Write down what became of a request, by OpenTelemetry's own names."""
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("rayvec.request_id", request_id)
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def _provider(collector: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        message = "traces need OpenTelemetry's exporter; pip install 'rayvec[otel]', or leave traces out"
        raise UserError(message) from None
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=collector)))
    return provider
