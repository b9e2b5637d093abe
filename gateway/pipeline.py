"""One image request from the caller's body to its result.

translate → find its place in the ledger, and admit it → lead, follow, or take what is there

Delivering the result is `gateway.api.images`' part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from msgspec import Struct

from gateway.admission import Admission, Pass
from gateway.caching import CacheControl, Record, fingerprint, is_cacheable, record_of, scope_of
from gateway.catalogue import Catalogue
from gateway.errors import ClientGone, GatewayError, IdempotencyConflict, NotCached
from gateway.exchange import Exchange
from gateway.generation import Clock, Generator, Run
from gateway.ledger import (
    Done,
    Entry,
    Failed,
    Follow,
    How,
    Idempotency,
    Lead,
    Ledger,
    Place,
    Refusal,
)
from gateway.protocol.openai import ImageRequest
from gateway.tenants import Caller, choose_model
from gateway.translate.request import Plan, to_dashscope

T = TypeVar("T")

CACHE = {
    How.HIT: "hit",
    How.JOINED: "joined",
    How.REPLAYED: "replayed",
    How.ADOPTED: "replayed",
}
GENERATION_S = 30.0
"""What a generation takes: a call whose slot comes later than this before the deadline is refused,
since its picture would be paid for and come too late."""


class Wish(Struct, frozen=True, kw_only=True):
    """What a client says beside the body: how old a result may be, and whether it asked before."""

    adoption: str
    """Hash of tenant, key and body."""
    control: CacheControl = CacheControl()
    idempotency: Idempotency | None = None
    is_retry: bool = False
    patience_s: float
    """How long it waits."""
    deadline_s: float
    """How long a generation may take, whether it still waits or not."""


class Result(Struct, frozen=True):
    """All images of a request, and where they came from."""

    place: Done | Lead
    record: Record
    cache: str
    """`x-cache`."""


class Job:
    """A request under way, in a task of its own: what is paid for must outlive its caller."""

    __slots__ = ("_pipeline", "cache_s", "place", "plan", "run", "task", "wish")

    def __init__(
        self, plan: Plan, wish: Wish, run: Run, pipeline: Pipeline, *, cache_s: float
    ) -> None:
        self.cache_s = cache_s
        self.plan = plan
        self.wish = wish
        self.run = run
        self._pipeline = pipeline
        self.place: Place | None = None
        self.task: asyncio.Task[Result]

    def leave(self) -> bool:
        """The caller waits no longer: send nothing more. Whether anything is under way."""
        self.run.left = True
        self.run.give_up()
        if self.run.sent and isinstance(self.place, Done | Lead):
            self._pipeline.let_go(self.place)
        return self.run.sent or isinstance(self.place, Follow)

    async def delivered(self) -> None:
        """The caller has its answer."""
        if isinstance(self.place, Done | Lead):
            await self._pipeline.delivered(self.place)


class Pipeline:
    """Serves image requests. All state is in its parts."""

    def __init__(
        self,
        catalogue: Catalogue,
        default_model: str,
        *,
        admission: Admission,
        ledger: Ledger,
        generator: Generator,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._default_model = default_model
        self._admission = admission
        self._ledger = ledger
        self._generator = generator
        self._clock = clock
        self._running: set[asyncio.Task[Any]] = set()
        self.delivered = ledger.delivered

    def use(self, catalogue: Catalogue, default_model: str) -> None:
        """Follow a changed configuration, from the next request on."""
        self._catalogue = catalogue
        self._default_model = default_model

    def start(self, caller: Caller, request: ImageRequest, exchange: Exchange, wish: Wish) -> Job:
        """Translate a request and begin to serve it.

        Raises:
            GatewayError: it cannot be honoured; nothing was begun.
        """
        tenant = caller.tenant
        choice = choose_model(self._catalogue, tenant, request.model, self._default_model)
        exchange.model = choice.family
        plan = to_dashscope(request, choice, tenant.size_policy)
        now, patience_s = self._clock.steady(), min(wish.patience_s, wish.deadline_s)
        run = Run(
            tenant.name,
            exchange,
            slot_by=now + patience_s - min(GENERATION_S, patience_s / 2),
            deadline=now + wish.deadline_s,
        )
        job = Job(plan, wish, run, self, cache_s=tenant.cache.ttl_s)
        job.task = self._spawn(self._serve(caller, job, exchange))
        return job

    def let_go(self, place: Done | Lead) -> None:
        """Its client has left; its retry may have the result."""
        self._spawn(self._ledger.let_go(place))

    async def drain(self) -> None:
        """Wait for what is under way for callers that have left."""
        if self._running:
            await asyncio.wait(self._running)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Let go of a task; a failure that nobody waits for any more has been logged already."""
        self._running.discard(task)
        if not task.cancelled():
            task.exception()

    async def _serve(self, caller: Caller, job: Job, exchange: Exchange) -> Result:
        job.run.pausing()
        entry = self._entry(caller, job, exchange)
        place, held = await self._enter(caller, job, entry, exchange)
        started = self._clock.steady()
        try:
            if isinstance(place, Follow):
                place = job.place = await self._followed(place, job, entry)
                held = await self._paying(held, place, job, exchange)
            return await self._result(place, job, entry)
        finally:
            exchange.waited_s += self._clock.steady() - started
            await self._admission.settle(held, job.run.generated, exchange.request_id)

    def _entry(self, caller: Caller, job: Job, exchange: Exchange) -> Entry:
        """Everything by which the request may find a result."""
        cache, wish, plan = caller.tenant.cache, job.wish, job.plan
        key = fingerprint(plan)
        shared = is_cacheable(cache.mode, plan) and not wish.control.no_store
        max_age_s = wish.control.max_age_s
        return Entry(
            scope=scope_of(caller.tenant.name, cache.group),
            request=exchange.request_id,
            plan=key,
            images=plan.images,
            cache_key=key if shared else None,
            max_age_ms=None if max_age_s is None else max_age_s * 1000,
            fresh=wish.control.no_cache,
            only_if_cached=wish.control.only_if_cached,
            needs_url=plan.response_format == "url",
            idempotency=wish.idempotency,
            adoption=wish.adoption,
            is_retry=wish.is_retry,
            takes_orphans=not wish.control.no_store and max_age_s is None,
        )

    async def _enter(
        self, caller: Caller, job: Job, entry: Entry, exchange: Exchange
    ) -> tuple[Done | Follow | Lead, Pass]:
        """Find the request's place, then admit it: only a lead reserves images and money."""
        place = job.place = await self._ledger.enter(entry)
        if isinstance(place, Refusal | Failed):
            raise refusal(place)
        pays = isinstance(place, Lead)
        try:
            held = await self._admission.admit(caller, job.plan, exchange, pays=pays)
        except BaseException as error:
            await leave(place)
            if isinstance(error, GatewayError):
                self._spawn(self._ledger.excuse(entry))
            raise
        return place, held

    async def _followed(self, follow: Follow, job: Job, entry: Entry) -> Done | Lead:
        outcome = await follow.outcome(self._clock.steady() + job.wish.patience_s)
        if isinstance(outcome, Failed):
            self._spawn(self._ledger.excuse(entry))
            raise outcome.error
        return outcome

    async def _paying(self, held: Pass, place: Done | Lead, job: Job, exchange: Exchange) -> Pass:
        """Admit anew who was admitted to be given another's images, and has to make them now."""
        if isinstance(place, Done) or held.reservation.images:
            return held
        try:
            paying = await self._admission.admit(held.caller, job.plan, exchange)
        except BaseException:
            await leave(place)
            raise
        # Not awaited: a cancellation in between would lose what has just been admitted.
        self._spawn(self._admission.settle(held, 0, exchange.request_id))
        return paying

    async def _result(self, place: Done | Lead, job: Job, entry: Entry) -> Result:
        if isinstance(place, Done):
            return Result(place, place.record, CACHE[place.how])
        keep_s = 0.0 if entry.cache_key is None else job.cache_s
        record = await self._lead(place, job, keep_s)
        return Result(place, record, "bypass" if entry.cache_key is None else "miss")

    async def _lead(self, lead: Lead, job: Job, keep_s: float) -> Record:
        """Generate for everyone who waits; the result stays in the cache for `keep_s`."""
        plan, run = job.plan, job.run
        run.parts, run.keep = lead.parts, lead.progress
        try:
            urls = await self._generator.generate(plan, run)
        except GatewayError as error:
            if run.sent:
                await lead.fail(error, answered=not run.left)
            else:  # this request's own deadline: one that waits longer may still be served
                await lead.step_down(answered=not run.left)
            raise
        except BaseException:
            await leave(lead)
            raise
        if len(urls) < plan.images:
            await lead.step_down(answered=False)
            raise ClientGone("The client closed the connection.")
        record = record_of(plan, urls, self._clock.now())
        await lead.finish(record, keep_s)
        return record


async def leave(place: Place) -> None:
    """Give a lead up before anything was sent; one of those who wait for it takes over."""
    if isinstance(place, Lead) and not await place.abandon():
        await place.step_down(answered=False)


def refusal(place: Refusal | Failed) -> GatewayError:
    """The error for a request that can have no place."""
    if isinstance(place, Failed):
        return place.error
    if place is Refusal.CONFLICT:
        return IdempotencyConflict("This Idempotency-Key came before with a different body.")
    return NotCached("No result is kept for this request, and only-if-cached was asked.")
