"""Serving a request while its answer is sent: each image, as it comes, is a server-sent event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from gateway.api.answers import Answers, ImageEvents, note_unclaimed
from gateway.api.connection import watch
from gateway.api.errors import to_detail
from gateway.api.responses import STALLED, TOO_SLOW, broken_off, send_piece, why_stopped
from gateway.delivery import OpenDelivery
from gateway.domain.errors import GatewayError, ImageUnavailable
from gateway.observability.context import ClientOutcome, RequestContext, context_of
from gateway.protocol.openai import ErrorEvent, ImageEvent
from gateway.requests.client import Client, Part
from gateway.requests.pipeline import Result, cached
from gateway.translate.request import Plan

T = TypeVar("T")
COMMENT = b":\n\n"
"""Keeps proxies from timing out; clients ignore it."""
AS_IT_COMES = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""For proxies, among them nginx."""


class StreamedRequest(Struct, frozen=True, kw_only=True):
    """A request that is yet to be served."""

    serve: Callable[[Client], Awaitable[Result]]
    event: ImageEvent
    plan: Plan
    cache_s: float
    """How long its tenant's cache keeps its images."""
    silence_s: float
    """How long its answer may be silent."""


class StreamedEvents(ASGIResponse):
    """Serves the request, and sends its images meanwhile (0025).

    The first image or comment begins the answer. A failure before is an error with its own status;
    after it, the last event.
    """

    _should_set_content_length = False

    def __init__(self, request: StreamedRequest, answers: Answers, headers: dict[str, str]) -> None:
        super().__init__(media_type="text/event-stream", headers=headers | AS_IT_COMES)
        self._request = request
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The work goes on if the client leaves. Raises GatewayError if nothing was sent yet."""
        context, asked = context_of(scope), self._request
        events = ImageEvents(self._answers, asked.event, asked.plan, asked.cache_s, context)
        sender = EventSender(self, send, events, context, asked.silence_s)
        client = Client(sender.answer_early, sender.add)
        sending = sender.start(client)
        stop_watching = watch(scope, receive, sender.hang_up)
        result = None
        try:
            try:
                result = await asked.serve(client)
            except GatewayError as error:
                sender.end(error)
            else:
                self.headers.update(self._answers.note(result, context))
                sender.end_with(result)
            await asyncio.wait([sending])
        finally:
            stop_watching()
            sending.cancel()
            await asyncio.wait([sending])
        await self._conclude(sending, sender, result, context)

    async def _conclude(
        self,
        sending: asyncio.Task[None],
        sender: EventSender,
        result: Result | None,
        context: RequestContext,
    ) -> None:
        if sender.failure is not None and result is not None:
            if isinstance(sender.failure, ImageUnavailable):
                await self._answers.give_up(sender.failure, result)
            note_unclaimed(sender.failure, context)
        if sending.cancelled():
            if sender.failure is not None and not sender.has_begun:
                raise sender.failure
            broken_off(context, *sender.why_stopped())
            return
        try:
            sending.result()
        except GatewayError as cause:
            if not sender.has_begun:
                raise
            broken_off(context, cause.label(), str(cause))
        except TimeoutError:
            broken_off(context, STALLED, TOO_SLOW)


class EventSender:
    """Sends images in the order given, and a comment after a long silence."""

    def __init__(
        self,
        answer: ASGIResponse,
        send: Send,
        events: ImageEvents,
        context: RequestContext,
        silence_s: float,
    ) -> None:
        self._answer = answer
        self._send = send
        self._events = events
        self._context = context
        self._silence_s = silence_s
        self._speaks_at = asyncio.get_running_loop().time() + silence_s
        self._client: Client | None = None
        """While it is being served."""
        self._task: asyncio.Task[None] | None = None
        self._queue: asyncio.Queue[Part | Result | None] = asyncio.Queue()
        self._has_parts = False
        self._delivery: OpenDelivery | None = None
        self._is_between_events = True
        self.has_begun = False
        self.failure: GatewayError | None = None
        """Why not all images were sent, or will be: the first reason."""

    def start(self, client: Client) -> asyncio.Task[None]:
        self._client = client
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._cut_off)
        return self._task

    def answer_early(self, error: GatewayError) -> None:
        """End the answer while the work for the client goes on."""
        if self.has_begun:
            self._fail(error)
        else:
            self._stop()
            self._context.answer_early(error)

    def hang_up(self) -> None:
        self._context.is_client_gone = True
        self._stop()
        if self._client is not None:
            self._client.hang_up()

    def add(self, part: Part) -> None:
        """Send these images, after those before."""
        self._answer.headers["x-cache"] = cached(part.entry)
        self._has_parts = True
        self._queue.put_nowait(part)

    def end_with(self, result: Result) -> None:
        """All images came in parts, or none did."""
        self._client = None
        if not self._has_parts:
            self._queue.put_nowait(result)
        self._queue.put_nowait(None)

    def end(self, failure: GatewayError) -> None:
        self._client = None
        self._fail(failure)

    def _fail(self, failure: GatewayError) -> None:
        self.failure = self.failure or failure
        self._queue.put_nowait(None)

    def why_stopped(self) -> tuple[str, str]:
        return why_stopped(self._delivery)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _cut_off(self, task: asyncio.Task[None]) -> None:
        """What comes after a failure cannot be sent: begin nothing more."""
        if not task.cancelled() and task.exception() is not None and self._client is not None:
            self._client.hang_up()

    async def _run(self) -> None:
        """Raises TimeoutError for a stalled client, GatewayError if an event cannot be sent."""
        try:
            while (images := await self._meanwhile(self._queue.get())) is not None:
                try:
                    await self._deliver(images)
                except GatewayError as error:
                    self.failure = self.failure or error
                    if not self._is_between_events:
                        raise
            if self.failure is None:
                await self._write(b"", more=False)
                return
            if not self.has_begun:
                raise self.failure
            self._context.outcome = self.failure.label()
            await self._note_gone()
            await self._write(to_error_event(self.failure), more=False)
        finally:
            if self._delivery is not None:
                await self._delivery.aclose()

    async def _note_gone(self) -> None:
        """Some images are missing: a retry gets those that exist."""
        self._context.is_client_gone = True
        if self._client is None:  # it has been served, so this is all that is left to note
            if self._context.after_answer is not None:
                await self._context.after_answer(ClientOutcome.GONE)
            self._context.after_answer = None

    async def _deliver(self, images: Part | Result) -> None:
        await self._meanwhile(self._open(images))
        delivery = self._delivery
        if delivery is None:
            return
        delivery.on_cut = self.hang_up
        try:
            async with aclosing(delivery.body()) as pieces:
                while (piece := await self._next(pieces)) is not None:
                    delivery.begun()
                    await self._write(piece)
        finally:
            self._events.sent(delivery)
        self._delivery = None

    async def _next(self, pieces: AsyncGenerator[bytes, None]) -> bytes | None:
        """The next piece, None at the end; converting an image may delay its first."""

        async def next_or_none() -> bytes | None:
            return await anext(pieces, None)

        return await (
            self._meanwhile(next_or_none()) if self._is_between_events else next_or_none()
        )

    async def _open(self, images: Part | Result) -> None:
        """Stored where `_run` closes it, even if that ends while this is under way."""
        self._delivery = await self._events.open(images, has_begun=self.has_begun)

    async def _meanwhile(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result; comments are sent until then."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                left_s = self._speaks_at - asyncio.get_running_loop().time()
                await asyncio.wait([task], timeout=left_s)
                if not task.done():
                    await self._write(COMMENT)
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _write(self, piece: bytes, *, more: bool = True) -> None:
        if not self.has_begun:
            self.has_begun = True
            await self._answer.start_response(self._send)
        self._is_between_events = piece.endswith(b"\n\n")
        await send_piece(self._send, piece, self._delivery, more=more)
        self._speaks_at = asyncio.get_running_loop().time() + self._silence_s


def to_error_event(error: GatewayError) -> bytes:
    """With a top-level `error`, at which the SDKs raise."""
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(ErrorEvent(to_detail(error)))
