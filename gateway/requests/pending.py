"""One image request from when it has its place to its answer."""

from __future__ import annotations

import asyncio
from typing import Protocol

from msgspec import Struct

from gateway.domain.errors import ClientGone, ServiceUnavailable, UpstreamTimeout
from gateway.pacing import Slot, Waiter
from gateway.requests.calls import First, Generator, Run
from gateway.results import Done, Entry, Follow, Idempotency, Lead
from gateway.results.cache_policy import CacheControl, Record
from gateway.tenants.admission import AdmissionTicket
from gateway.translate.request import Plan


class RequestOptions(Struct, frozen=True, kw_only=True):
    """What a client says beside the body: how old a result may be, and whether it asked before."""

    adoption: str
    """Hash of tenant, key and body."""
    control: CacheControl = CacheControl()
    idempotency: Idempotency | None = None
    is_retry: bool = False
    client_timeout_s: float
    """How long it waits."""
    deadline_s: float
    """How long a generation may take, whether it still waits or not."""


class Result(Struct, frozen=True):
    """All images of a request, and where they came from."""

    place: Done | Lead
    record: Record
    cache: str
    """`x-cache`."""


class Serving(Protocol):
    """What a job asks of the pipeline."""

    def now(self) -> float:
        """Steady seconds."""

    def serve(self, job: Job, first: First) -> asyncio.Task[Result]:
        """Begin the work; `first` is what waiting for a slot came to."""

    def withdraw(self, job: Job, waiter: Waiter) -> None:
        """The caller left before its turn."""

    def let_go(self, place: Done | Lead) -> None:
        """Its caller has left; its retry may have the result."""

    async def delivered(self, place: Done | Lead) -> None:
        """Its caller has it."""


class Job:
    """A request that has its place: it waits for its turn, is served, and is answered.

    What is paid for must outlive its caller, so it is served in a task of its own. Until its turn
    comes it has none: thousands wait, each a row in the pacer's queue and a future
    (docs/decisions/0007-waiting-without-tasks.md).
    """

    __slots__ = (
        "_pipeline",
        "_timer",
        "_waiter",
        "answer",
        "began_at",
        "cache_s",
        "client_timeout_s",
        "entry",
        "held",
        "place",
        "run",
    )

    def __init__(
        self,
        place: Done | Follow | Lead,
        held: AdmissionTicket,
        entry: Entry,
        run: Run,
        pipeline: Serving,
        *,
        client_timeout_s: float,
    ) -> None:
        self.place = place
        self.held = held
        self.entry = entry
        self.client_timeout_s = client_timeout_s
        self.run = run
        self.cache_s = held.caller.tenant.cache.ttl_s
        self.began_at = pipeline.now()
        self._pipeline = pipeline
        self._waiter: Waiter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        """The result, or why the caller has none."""

    @property
    def plan(self) -> Plan:
        """What is asked of the vendor."""
        return self.held.plan

    def wait(self, generator: Generator) -> None:
        """Wait for the turn."""
        self._waiter = generator.join(self.plan, self.run, self.ready)

    def ready(self, outcome: Slot | Exception) -> bool:
        """The turn has come, or never will."""
        self._waiter = None
        if self.run.left:
            return False
        self.begin(outcome)
        return True

    def begin(self, first: First = None) -> None:
        """Serve it, as long as the caller's patience lasts."""
        left_s = self.began_at + self.client_timeout_s - self._pipeline.now()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, left_s), self._too_late)
        self._pipeline.serve(self, first).add_done_callback(self._ended)

    def hang_up(self) -> None:
        """The caller is gone: send nothing more."""
        if not self.answer.done():
            self.answer.set_exception(ClientGone("The client closed the connection."))
            self.leave()

    def leave(self) -> bool:
        """The caller waits no longer: send nothing more. Whether anything is under way."""
        self.run.left = True
        self._stop_timer()
        if self._waiter is not None:
            self._pipeline.withdraw(self, self._waiter)
            self._waiter = None
        self.run.give_up()
        if self.run.sent and isinstance(self.place, Done | Lead):
            self._pipeline.let_go(self.place)
        return self.run.sent or isinstance(self.place, Follow)

    async def delivered(self) -> None:
        """The caller has its answer."""
        if isinstance(self.place, Done | Lead):
            await self._pipeline.delivered(self.place)

    def _too_late(self) -> None:
        if self.answer.done():
            return
        if self.leave():
            # An SDK's retry is given what is being made now, so it costs nothing.
            late = UpstreamTimeout("The images were not ready in time; they are still being made.")
            late.should_retry = True
            self.answer.set_exception(late)
        else:
            message = "The deadline passed before the images were begun."
            self.answer.set_exception(ServiceUnavailable(message))

    def _ended(self, task: asyncio.Task[Result]) -> None:
        self._stop_timer()
        if self.answer.done():
            return
        if task.cancelled():
            self.answer.cancel()
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
