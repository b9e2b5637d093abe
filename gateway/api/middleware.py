"""The outermost layer: a request id, the log line and the metrics of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from secrets import token_hex
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.images import PATHS as IMAGE_PATHS
from gateway.observability.context import RequestContext, ms, open_context
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracer, parent_of

LOGGED_PATH = 200


class Readiness:
    """Whether new requests should come here; a drain ends that for good."""

    def __init__(self) -> None:
        self.draining = False
        self.given_up = asyncio.Event()
        """Set when the drain has taken too long: what is left is not waited for."""


class RequestMiddleware:
    """Wraps the whole application, so that no answer, the framework's own included, lacks its id.

    The id is always the gateway's own: one taken from a client could collide with another tenant's,
    or carry characters that do not belong in a log.
    """

    def __init__(
        self,
        app: ASGIApp,
        images: ASGIApp,
        metrics: Metrics,
        readiness: Readiness,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._images = images
        self._metrics = metrics
        self._readiness = readiness
        self._tracer = tracer

    def drain(self) -> None:
        """No longer ready: the process is about to end."""
        self._readiness.draining = True

    def give_up(self) -> None:
        """Finish nothing more."""
        self._readiness.given_up.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, adding headers to its answer."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        context = open_context(scope, f"req_{token_hex(16)}")
        app, is_image = self._app, is_image_path(scope)
        if is_image:
            self._trace(scope, context)
            self._metrics.in_flight.inc()
            if scope["method"] == "POST":
                app = self._images
        answer = ResponseRecorder(self._record, scope, context, send)
        try:
            await app(scope, receive, answer.send)
        finally:
            if not answer.is_complete:
                answer.record()
            if is_image:
                self._metrics.in_flight.dec()
        if answer.is_complete and context.after_sent is not None:
            await context.after_sent()

    def _trace(self, scope: Scope, context: RequestContext) -> None:
        """The caller's trace id goes to the log, whether spans are made or not."""
        parent = parent_of(scope["headers"])
        trace_id = parent.trace_id if parent else None
        if self._tracer is not None:
            context.span = self._tracer.begin(parent)
            trace_id = context.span.trace_id
        if trace_id is not None:
            context.bind(trace_id=trace_id)

    def _record(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        context.log.info(
            "answered",
            path=scope["path"][:LOGGED_PATH],
            status=status,
            outcome=context.outcome,
            ms=ms(seconds),
            overhead_ms=ms(seconds - context.external_wait_s),
            **context.timing_fields(),
        )
        if not is_image_path(scope):
            return
        model, outcome = context.model, context.outcome
        self._metrics.request_seconds.labels(model).observe(seconds)
        if outcome == "ok":  # a client that left knows nothing of what others still take
            self._metrics.overhead_seconds.labels(model).observe(
                max(0.0, seconds - context.external_wait_s)
            )
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


def is_image_path(scope: Scope) -> bool:
    """With a slash at its end, too, as the framework has it."""
    return scope["path"].rstrip("/") in IMAGE_PATHS


Record = Callable[[Scope, RequestContext, int, float], None]
"""Told the status and the seconds of an answer."""


class ResponseRecorder:
    """What is sent for one request."""

    __slots__ = ("_exchange", "_record", "_scope", "_send", "_started", "_status", "is_complete")

    def __init__(self, record: Record, scope: Scope, context: RequestContext, send: Send) -> None:
        self._record = record
        self._scope = scope
        self._exchange = context
        self._send = send
        self._started = perf_counter()
        self._status = 0
        self.is_complete = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, with the headers that every answer carries."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message["headers"], *added(self._exchange, self._started)]
        elif message["type"] == "http.response.body" and not message["more_body"]:
            # Counted before its last byte leaves: a worker that is killed has counted every
            # answer that a client holds.
            self.is_complete = True
            self.record()
        return self._send(message)

    def record(self) -> None:
        """Count the answer, which is over."""
        seconds = perf_counter() - self._started
        self._record(self._scope, self._exchange, self._status, seconds)


def added(context: RequestContext, started: float) -> list[tuple[bytes, bytes]]:
    """The headers that every answer carries, and those of this one."""
    elapsed_ms = round((perf_counter() - started) * 1000)
    return [
        *((name.encode(), text.encode()) for name, text in context.headers().items()),
        (b"x-request-id", context.request_id.encode()),
        (b"openai-processing-ms", str(elapsed_ms).encode()),
        (b"openai-version", b"2020-10-01"),
        (b"x-content-type-options", b"nosniff"),
    ]
