"""What sends an answer: whole JSON, or a delivery no faster than the client takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import msgspec
from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from gateway.api.connection import watch
from gateway.delivery import OpenDelivery
from gateway.domain.errors import ClientGone, GatewayError, ImageUnavailable
from gateway.observability.context import RequestContext, context_of

T = TypeVar("T")
ENCODER = msgspec.json.Encoder()


class JsonAnswer(Response[T]):
    """A whole answer with lower-case headers; Litestar's own would cost a tenth of a cache hit."""

    def to_asgi_response(
        self,
        *_: Any,  # noqa: ANN401 - Litestar's own
        status_code: int | None = None,
        **__: Any,  # noqa: ANN401 - Litestar's own
    ) -> ASGIResponse:
        """Litestar needs only an ASGI application."""
        body = ENCODER.encode(self.content)
        headers = [
            *((name.encode(), value.encode("latin-1")) for name, value in self.headers.items()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        status = self.status_code or status_code or 200

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})

        return cast("ASGIResponse", answer)


STALLED_S = 60.0
"""For what is no image."""
STALLED = "client_stalled"
HUNG_UP = "the client hung up"
TOO_SLOW = "the client takes less than sending.least_bytes_per_s"
NO_ROOM = "the client takes nothing, and others need the memory"


def nothing(_: OpenDelivery) -> None:
    """Do nothing."""


async def leave(_: ImageUnavailable) -> None:
    """Leave it at that."""


class Events(Struct, frozen=True):
    """What else is to be done about a delivery."""

    ended: Callable[[OpenDelivery], object] = nothing
    """Called just before the last byte of the answer, or when it failed."""
    hopeless: Callable[[ImageUnavailable], Awaitable[object]] = leave
    """Awaited where an image cannot be had."""


NO_EVENTS = Events()


class Base64Answer(ASGIResponse):
    """Sends the delivery, and closes it."""

    def __init__(
        self,
        delivery: OpenDelivery,
        headers: dict[str, str],
        events: Events = NO_EVENTS,
    ) -> None:
        length = delivery.content_length
        super().__init__(content_length=length, media_type="application/json", headers=headers)
        if length is None:
            del self.headers["content-length"]
        self._delivery = delivery
        self._events = events
        self._begun = self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises GatewayError if the first image fails; a later failure closes the connection."""
        async with aclosing(self._delivery):
            task = asyncio.create_task(self._send(send))
            self._delivery.on_cut = task.cancel
            stop_watching = watch(scope, receive, task.cancel)
            try:
                await asyncio.wait([task])
            finally:
                stop_watching()
                task.cancel()
                await asyncio.wait([task])
        if task.cancelled():
            broken_off(context_of(scope), *why_stopped(self._delivery))
            return
        try:
            task.result()
        except GatewayError as cause:
            if isinstance(cause, ImageUnavailable):
                await self._events.hopeless(cause)
            if not self._begun:
                raise
            broken_off(context_of(scope), cause.label(), str(cause))
        except TimeoutError:
            broken_off(context_of(scope), STALLED, TOO_SLOW)

    async def _send(self, send: Send) -> None:
        left = self._delivery.content_length
        try:
            async with aclosing(self._delivery.body()) as pieces:
                async for piece in pieces:
                    if not self._begun:
                        self._begun = True
                        self._delivery.begun()
                        await self.start_response(send)
                    if left is not None:
                        left -= len(piece)
                    if left == 0:
                        self._end()
                    await send_piece(send, piece, self._delivery, more=left != 0)
            if left is None:
                self._end()
                await send_piece(send, b"", self._delivery, more=False)
        finally:
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._events.ended(self._delivery)


def broken_off(context: RequestContext, outcome: str, cause: str) -> None:
    """Note why an answer that began did not end."""
    context.outcome = outcome
    context.is_client_gone = True
    context.log.warning("delivery_broken_off", cause=cause)


def why_stopped(delivery: OpenDelivery | None) -> tuple[str, str]:
    """Outcome and cause of an answer whose sending was cancelled."""
    if delivery is not None and delivery.is_cut:
        return STALLED, NO_ROOM
    return ClientGone.label(), HUNG_UP


async def send_piece(
    send: Send, piece: bytes, delivery: OpenDelivery | None = None, *, more: bool = True
) -> None:
    """Send some of the body, or of a delivery. Raises TimeoutError if the client takes nothing."""
    message: Any = {"type": "http.response.body", "body": piece, "more_body": more}
    if delivery is None:
        async with asyncio.timeout(STALLED_S):
            await send(message)
        return
    with delivery.waits_for_client(len(piece)) as due:
        async with asyncio.timeout_at(due):
            await send(message)
