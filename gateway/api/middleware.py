"""What surrounds every request: its id, and the headers that every answer carries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from gateway.api.errors import error_answer
from gateway.domain.errors import GatewayError
from gateway.observability.context import ClientFate, RequestContext, open_context

ERRORS = 400


class Readiness:
    """Whether new requests should come here; a drain ends that for good."""

    def __init__(self) -> None:
        self.draining = False
        self.given_up = asyncio.Event()
        """Set when the drain has taken too long: what is left is not waited for."""


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
            if context.after_answer is not None:
                await context.after_answer(recorder.client_fate())


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

    def client_fate(self) -> ClientFate:
        if self._context.is_client_gone or not self.is_complete:
            return "gone"
        return "delivered" if self._status < ERRORS else "answered"

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
    own = {**context.headers(), **context.answer_headers}
    return [
        *[(name.encode(), text.encode()) for name, text in own.items()],
        (b"x-request-id", context.request_id.encode()),
        (b"openai-processing-ms", str(elapsed_ms).encode()),
        (b"openai-version", b"2020-10-01"),
        (b"x-content-type-options", b"nosniff"),
    ]
