"""Traces: W3C `traceparent` from clients, and OpenTelemetry spans where they are turned on.

Only `open_tracer` imports OpenTelemetry, an extra (`otel`). A request is one span; its waits
(store, queue, upstream, download) are children, written when they end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from time import time_ns
from typing import Any

from msgspec import Struct

TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
NO_TRACE = "0" * 32
NO_SPAN = "0" * 16
EXPORTER = "opentelemetry.exporter.otlp.proto.http"
"""The module that the extra brings."""


class Parent(Struct, frozen=True):
    """The caller's span."""

    trace_id: str
    span_id: str
    sampled: bool


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """The caller's span, if it sent exactly one that is well-formed."""
    found = [value for name, value in headers if name == b"traceparent"]
    return parse(found[0]) if len(found) == 1 else None


def parse(traceparent: bytes) -> Parent | None:
    """As W3C Trace Context says: version ff is invalid, 00 has four fields, later ones may more."""
    match = TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    trace_id, span_id = match[2].decode(), match[3].decode()
    if trace_id == NO_TRACE or span_id == NO_SPAN:
        return None
    return Parent(trace_id, span_id, bool(int(match[4], 16) & 1))


class Tracer:
    """Makes the spans of requests. `provider` is an OpenTelemetry SDK's `TracerProvider`."""

    def __init__(self, provider: Any) -> None:  # noqa: ANN401 - a type of the extra
        self._provider = provider
        self._tracer = provider.get_tracer("gateway")

    def begin(self, parent: Parent | None) -> RequestSpan:
        """Open the span of a request; below the caller's, if it sent one."""
        from opentelemetry import trace  # noqa: PLC0415 - of the extra

        context = None
        if parent is not None:
            above = trace.SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(int(parent.sampled)),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(above))
        span = self._tracer.start_span("image request", context, kind=trace.SpanKind.SERVER)
        return RequestSpan(self._tracer, span, trace.set_span_in_context(span))

    def close(self) -> None:
        self._provider.shutdown()


class RequestSpan:
    def __init__(self, tracer: Any, span: Any, context: Any) -> None:  # noqa: ANN401 - as above
        self._tracer = tracer
        self._span = span
        self._context = context
        self.trace_id = format(span.get_span_context().trace_id, "032x")

    def passed(self, name: str, seconds: float) -> None:
        """Write a child that ends now."""
        end = time_ns()
        start = end - round(seconds * 1e9)
        self._tracer.start_span(name, self._context, start_time=start).end(end)

    def end(self, attributes: Mapping[str, str | int]) -> None:
        self._span.set_attributes(attributes)
        self._span.end()


def open_tracer(endpoint: str, version: str) -> Tracer:
    """Send spans to an OTLP collector in the background. Raises ImportError without `otel`."""
    from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415 - the extra
    from opentelemetry.sdk import resources, trace  # noqa: PLC0415 - of the extra
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - of the extra

    about = {"service.name": "image-gateway", "service.version": version}
    provider = trace.TracerProvider(resource=resources.Resource.create(about))
    exporter = trace_exporter.OTLPSpanExporter(endpoint=endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider)
