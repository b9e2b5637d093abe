"""What surrounds every request: its id, the headers of its answer, and its log line and metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from gateway.api.errors import error_answer
from gateway.domain.errors import GatewayError
from gateway.observability.context import (
    ClientOutcome,
    RequestContext,
    context_of,
    ms,
    nothing,
    open_context,
)
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracer, parent_of

LOGGED_PATH = 200
READYZ = "/readyz"
PROBES = frozenset({"/healthz", READYZ, "/metrics"})
ERRORS = 400


Observer = Callable[[Scope, RequestContext, int, float], None]
"""Called with the status and the seconds of an answer, just before its last byte leaves."""


class RequestMiddleware:
    """Wraps the whole application, so that every answer has its id, the framework's included.

    Litestar's middleware misses unknown paths. The id is never the client's: it could collide with
    another tenant's, or carry bad characters into the log.
    """

    def __init__(
        self, app: ASGIApp, readiness: Readiness, observers: Sequence[Observer] = ()
    ) -> None:
        self._app = app
        self._readiness = readiness
        self._observers = observers
        self.operations: RequestMiddleware | None = None
        """What is served at a separate address."""

    def drain(self) -> None:
        """No longer ready: the process is about to end."""
        self._readiness.draining = True

    def give_up(self) -> None:
        self._readiness.given_up.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        context = open_context(scope, f"req_{token_hex(16)}")
        recorder = ResponseRecorder(self._observers, scope, context, send)
        context.answer_early = recorder.answer_early
        try:
            await self._app(scope, receive, recorder.send)
        finally:
            if not recorder.is_complete:
                recorder.record()
            # Both hold the context, which would otherwise wait for the garbage collector.
            after_answer, context.after_answer = context.after_answer, None
            context.answer_early = nothing
            if after_answer is not None:
                await after_answer(recorder.client_outcome())


class ResponseRecorder:
    """Records what is sent for one request."""

    __slots__ = (
        "_context",
        "_early",
        "_observers",
        "_scope",
        "_send",
        "_started",
        "_status",
        "is_complete",
    )

    def __init__(
        self, observers: Sequence[Observer], scope: Scope, context: RequestContext, send: Send
    ) -> None:
        self._observers = observers
        self._scope = scope
        self._context = context
        self._send = send
        self._started = perf_counter()
        self._status = 0
        self._early: asyncio.Task[None] | None = None
        self.is_complete = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, unless the client has been answered early."""
        return self._send_on(message) if self._early is None else ignore()

    def answer_early(self, error: GatewayError) -> None:
        """Send an error while the work for the client goes on; later messages are dropped."""
        if not self._status:
            self._context.is_client_gone = True
            self._context.outcome = error.label()
            self._early = asyncio.create_task(self._answer(error))

    async def _answer(self, error: GatewayError) -> None:
        await error_answer(self._scope, error)(self._scope, never, self._send_on)

    def client_outcome(self) -> ClientOutcome:
        if self._context.is_client_gone or not self.is_complete:
            return ClientOutcome.GONE
        is_good = self._status < ERRORS
        return ClientOutcome.DELIVERED if is_good else ClientOutcome.ANSWERED

    def _send_on(self, message: Message) -> Awaitable[None]:
        """Pass a message on, with the headers that every answer carries."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message["headers"], *added(self._context, self._started)]
        elif message["type"] == "http.response.body" and not message["more_body"]:
            # Counted before its last byte leaves: a worker that is killed has counted every
            # answer that a client holds.
            self.is_complete = True
            self.record()
        return self._send(message)

    def record(self) -> None:
        """Call the observers: the answer is over."""
        seconds = perf_counter() - self._started
        for observe in self._observers:
            observe(self._scope, self._context, self._status, seconds)


async def ignore() -> None:
    """Send nothing."""


async def never() -> HTTPReceiveMessage:
    """For an answer that reads nothing."""
    raise RuntimeError("an error's answer reads nothing")


def added(context: RequestContext, started: float) -> list[tuple[bytes, bytes]]:
    """The headers that every answer carries, and this answer's own."""
    elapsed_ms = round((perf_counter() - started) * 1000)
    limits = context.limit_headers() if context.limit_headers else {}
    own = {**limits, **context.answer_headers}
    return [
        *[(name.encode(), text.encode()) for name, text in own.items()],
        (b"x-request-id", context.request_id.encode()),
        (b"openai-processing-ms", str(elapsed_ms).encode()),
        (b"openai-version", b"2020-10-01"),
        (b"x-content-type-options", b"nosniff"),
    ]


class Readiness:
    """Whether new requests should come here; a drain ends that for good."""

    def __init__(self) -> None:
        self.draining = False
        self.given_up = asyncio.Event()
        """Set when the drain has taken too long: what is left is not waited for."""


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
