"""The client of one request, who may leave while the work that it caused goes on.

A `Part` is what it may be given before all of its images are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from gateway.domain.errors import ClientGone, GatewayError, ServiceUnavailable, UpstreamTimeout
from gateway.results import Entry, Lead
from gateway.translate.request import Plan

T = TypeVar("T")


class Stopped(Exception):
    """The request gets no further, for a reason of its own; no call of it is unanswered.

    Others that want the same images may go on.
    """

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


class Client:
    """Waits for its images, until it hangs up or its time is over.

    `wait` covers everything before a call is sent and ends when the client leaves. What was sent is
    paid for and goes on; `answer_early` sends the client an error meanwhile.
    """

    __slots__ = (
        "_answer_early",
        "_futures",
        "_timer",
        "_why",
        "is_under_way",
        "left",
        "on_leave",
        "on_part",
    )

    def __init__(
        self,
        answer_early: Callable[[GatewayError], object],
        on_part: Callable[[Part], object] | None = None,
    ) -> None:
        self._answer_early = answer_early
        self._futures: tuple[asyncio.Future[Any], ...] = ()
        """Those waited for; a tuple, since thousands have one each."""
        self._timer: asyncio.TimerHandle | None = None
        self._why: GatewayError | None = None
        """Why nothing more is begun."""
        self.left = False
        self.is_under_way: Callable[[], bool] | None = None
        """Whether images are being made or exist already; None for a follower."""
        self.on_part = on_part
        """Gets images before all are there, for a streamed answer."""
        self.on_leave: Callable[[], object] | None = None
        """Called once, when it leaves."""

    def start_timer(self, timeout_s: float) -> None:
        """Begin to count its time, unless it has left already."""
        if not self.left:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, timeout_s), self._time_out)

    def stop_timer(self) -> None:
        """Its answer is on the way: its time counts no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ends(self) -> None:
        """Nothing is made for it any more."""
        self.stop_timer()
        self.is_under_way = self.on_leave = None  # they hold what holds this client

    def hang_up(self) -> None:
        self._leave(ClientGone("The client closed the connection."))

    def _time_out(self) -> None:
        if self.is_under_way is None or self.is_under_way():
            # An SDK's retry is given what is being made now, so it costs nothing.
            late = UpstreamTimeout("The images were not ready in time; they are still being made.")
            late.should_retry = True
            self._leave(late)
            if self.is_under_way is not None:
                self._answer_early(late)
        else:
            message = "The deadline passed before the images were begun."
            self._leave(ServiceUnavailable(message))

    def _leave(self, why: GatewayError) -> None:
        self.stop_timer()
        if not self.left:
            self.left = True
            self.abort(why)
            if self.on_leave is not None:
                self.on_leave()

    def abort(self, why: GatewayError) -> None:
        self._why = self._why or why
        for future in self._futures:
            if not future.done():
                future.set_exception(Stopped(self._why))
        self._futures = ()

    def check(self) -> None:
        """Raises Stopped once nothing more is to be begun."""
        if self._why is not None:
            raise Stopped(self._why)

    def wait(self, future: asyncio.Future[T]) -> asyncio.Future[T]:
        """The same future, which ends when the client leaves; no coroutine, to save a frame each.

        The future raises Stopped where the client has left or another part of its request has
        failed; so does this.
        """
        self.check()
        self._futures = (*(one for one in self._futures if not one.done()), future)
        return future

    async def sleep(self, seconds: float) -> None:
        """Raises Stopped, as `wait`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, wake, future)
        try:
            await self.wait(future)
        finally:
            timer.cancel()


def wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Part(Struct, frozen=True):
    """Some images of a request before it has all; they are paid for and kept."""

    entry: Entry
    lead: Lead
    urls: Sequence[str]
    first: int
    """The index of its first image in the request."""
    deadline: float
    """Until when they can be fetched, in steady seconds."""


class PartFeed:
    def __init__(
        self,
        entry: Entry,
        lead: Lead,
        plan: Plan,
        give: Callable[[Part], object],
        deadline: float,
    ) -> None:
        self._entry = entry
        self._lead = lead
        self._give = give
        self._deadline = deadline
        self._wanted = [call.parameters.n or 1 for call in plan.calls]
        self._given = [0] * len(plan.calls)

    def brought(self, index: int, urls: Sequence[str]) -> None:
        """All images of one call so far."""
        wanted, given = self._wanted[index], self._given[index]
        fresh = urls[given:wanted]
        if fresh:
            self._given[index] += len(fresh)
            first = sum(self._wanted[:index]) + given
            self._give(Part(self._entry, self._lead, fresh, first, self._deadline))
