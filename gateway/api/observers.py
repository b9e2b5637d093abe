"""What is kept of an answered request: a log line, and metrics and a span of an image request."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.observability.context import RequestContext, context_of, ms
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracer, parent_of

LOGGED_PATH = 200
READYZ = "/readyz"
PROBES = frozenset({"/healthz", READYZ, "/metrics"})
ERRORS = 400


def log_answer(scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
    """Log a request; of periodic probes only failures: `/readyz` logs its changes itself."""
    path = scope["path"]
    is_probe = path == READYZ or (path in PROBES and status < ERRORS)
    context.log.log(
        logging.DEBUG if is_probe else logging.INFO,
        "answered",
        path=path[:LOGGED_PATH],
        status=status,
        outcome=context.outcome,
        ms=ms(seconds),
        # A stream's images may be sent while others of its calls are waited for: counted twice.
        overhead_ms=ms(max(0.0, seconds - context.external_s())),
        **context.timing_fields(),
    )


class ImageRequests:
    """Metrics and spans of the image routes."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None) -> None:
        self._metrics = metrics
        self._tracer = tracer

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """For Litestar: all requests of a route with it are image requests."""

        def image_request(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            context = context_of(scope)
            context.is_image_request = True
            self._begin_trace(scope, context)
            self._metrics.in_flight.inc()
            return app(scope, receive, send)  # no frame of its own, as long as a request waits

        return image_request

    def _begin_trace(self, scope: Scope, context: RequestContext) -> None:
        """The caller's trace id goes to the log, with or without spans."""
        parent = parent_of(scope["headers"])
        trace_id = parent.trace_id if parent else None
        if self._tracer is not None:
            context.span = self._tracer.begin(parent)
            trace_id = context.span.trace_id
        if trace_id is not None:
            context.bind(trace_id=trace_id)

    def observe(self, _: Scope, context: RequestContext, status: int, seconds: float) -> None:
        if not context.is_image_request:
            return
        self._metrics.in_flight.dec()
        model, outcome = context.model, context.outcome
        self._metrics.request_seconds.labels(model).observe(seconds)
        if outcome == "ok":  # a client that left knows nothing of what others still take
            overhead_s = max(0.0, seconds - context.external_wait_s)
            self._metrics.overhead_seconds.labels(model).observe(overhead_s)
        if context.span is not None:
            context.span.end(
                {
                    "tenant": context.tenant,
                    "model": model,
                    "outcome": outcome,
                    "request_id": context.request_id,
                    "http.response.status_code": status,
                }
            )
        # Last, so that as little as possible lies between the count and the answer's last byte.
        self._metrics.requests.labels(context.tenant, model, outcome).inc()
