"""One image request from the caller's body to its result.

translate → find its place in the ledger, and admit it → lead, follow, or take what is there

Delivering the result is `gateway.api.images`' part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.domain.catalogue import Catalogue
from gateway.domain.clock import Clock
from gateway.domain.errors import (
    ClientGone,
    GatewayError,
    IdempotencyConflict,
    NotCached,
    UpstreamAmbiguous,
)
from gateway.observability.context import RequestContext
from gateway.pacing import Waiter
from gateway.protocol.openai import ImageRequest
from gateway.requests.calls import First, Generator, Run
from gateway.requests.pending import Job, RequestOptions, Result
from gateway.results import (
    Done,
    Entry,
    Failed,
    Follow,
    How,
    Lead,
    Ledger,
    Place,
    Refusal,
)
from gateway.results.cache_policy import Record, fingerprint, is_cacheable, record_of, scope_of
from gateway.tenants.admission import Admission, AdmissionTicket
from gateway.tenants.keys import Caller, choose_model
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
LAST_S = 1.0
"""How long calls that were sent may yet be answered at an end that waits for nothing more, and then
how long what is given up may take to say so."""


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

    def use(self, catalogue: Catalogue, default_model: str) -> None:
        """Follow a changed configuration, from the next request on."""
        self._catalogue = catalogue
        self._default_model = default_model

    async def begin(
        self,
        caller: Caller,
        request: ImageRequest,
        context: RequestContext,
        options: RequestOptions,
    ) -> Job:
        """Translate a request, find its place, admit it, and begin to serve it.

        Raises:
            GatewayError: it cannot be honoured; nothing was begun.
        """
        tenant = caller.tenant
        choice = choose_model(self._catalogue, tenant, request.model, self._default_model)
        context.model = choice.family
        plan = to_dashscope(request, choice, tenant.size_policy)
        entry = to_entry(caller, plan, options, context)
        now, client_timeout_s = (
            self._clock.steady(),
            min(options.client_timeout_s, options.deadline_s),
        )
        run = Run(
            tenant.name,
            context,
            slot_by=now + client_timeout_s - min(GENERATION_S, client_timeout_s / 2),
            deadline=now + options.deadline_s,
        )
        place, held = await self._enter(caller, plan, entry, context)
        job = Job(place, held, entry, run, self, client_timeout_s=options.client_timeout_s)
        if isinstance(place, Lead) and not place.parts and len(plan.calls) == 1:
            job.wait(self._generator)
        else:
            job.begin()
        return job

    async def attach_rate_limit_headers(self, caller: Caller, context: RequestContext) -> None:
        """Where its tenant's limits stand, for a request that failed before they were asked."""
        await self._admission.attach_rate_limit_headers(caller, context)

    def now(self) -> float:
        """Steady seconds."""
        return self._clock.steady()

    def serve(self, job: Job, first: First) -> asyncio.Task[Result]:
        """Begin the work; `first` is what waiting for a slot came to."""
        return self._spawn(self._serve(job, first))

    def withdraw(self, job: Job, waiter: Waiter) -> None:
        """The caller left before its turn."""
        self._generator.leave(job.plan, waiter)
        self._spawn(self._give_up(job))

    def let_go(self, place: Done | Lead) -> None:
        """Its client has left; its retry may have the result."""
        self._spawn(self._ledger.let_go(place))

    async def delivered(self, place: Done | Lead) -> None:
        """Its client has all of it."""
        await self._ledger.delivered(place)

    async def drain(self, given_up: asyncio.Event) -> None:
        """Wait for what is under way for callers that have left.

        Once that is given up, all of it leaves the ledger and the limits, and gets a moment for it.
        """
        if self._running:
            ended = asyncio.create_task(asyncio.wait(set(self._running)))
            cut = asyncio.create_task(given_up.wait())
            await asyncio.wait([ended, cut], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            cut.cancel()
        if self._running:
            _, rest = await asyncio.wait(set(self._running), timeout=LAST_S)
            for task in rest:
                task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=LAST_S)

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

    async def _serve(self, job: Job, first: First) -> Result:
        job.run.pausing()
        try:
            if isinstance(job.place, Follow):
                job.place = await self._followed(job.place, job)
                job.held = await self._paying(job.held, job.place)
            return await self._result(job.place, job, first)
        finally:
            await self._settle(job)

    async def _give_up(self, job: Job) -> None:
        await leave(job.place)
        await self._settle(job)

    async def _settle(self, job: Job) -> None:
        context = job.run.context
        context.external_wait_s += self._clock.steady() - job.began_at
        await self._admission.settle(job.held, job.run.generated, context.request_id)

    async def _enter(
        self, caller: Caller, plan: Plan, entry: Entry, context: RequestContext
    ) -> tuple[Done | Follow | Lead, AdmissionTicket]:
        """Find the request's place, then admit it: only a lead reserves images and money."""
        place = await self._ledger.enter(entry)
        if isinstance(place, Refusal | Failed):
            raise refusal(place)
        pays = isinstance(place, Lead)
        try:
            if pays:
                await self._generator.require_delivery(plan)
            held = await self._admission.admit(caller, plan, context, pays=pays)
        except BaseException as error:
            await leave(place)
            if isinstance(error, GatewayError):
                self._spawn(self._ledger.excuse(entry))
            raise
        return place, held

    async def _followed(self, follow: Follow, job: Job) -> Done | Lead:
        outcome = await follow.outcome(job.began_at + job.client_timeout_s)
        if isinstance(outcome, Failed):
            self._spawn(self._ledger.excuse(job.entry))
            raise outcome.error
        return outcome

    async def _paying(self, held: AdmissionTicket, place: Done | Lead) -> AdmissionTicket:
        """Reserve for who was admitted to be given another's images, and has to make them now."""
        if isinstance(place, Done) or held.reservation.images:
            return held
        try:
            return await self._admission.pay(held)
        except BaseException:
            await leave(place)
            raise

    async def _result(self, place: Done | Lead, job: Job, first: First) -> Result:
        if isinstance(place, Done):
            return Result(place, place.record, CACHE[place.how])
        is_shared = job.entry.cache_key is not None
        record = await self._lead(place, job, job.cache_s if is_shared else 0.0, first)
        return Result(place, record, "miss" if is_shared else "bypass")

    async def _lead(self, lead: Lead, job: Job, keep_s: float, first: First) -> Record:
        """Generate for everyone who waits; the result stays in the cache for `keep_s`."""
        plan, run = job.plan, job.run
        run.parts, run.keep = lead.parts, lead.progress
        try:
            urls = await self._generator.generate(plan, run, first)
        except GatewayError as error:
            if run.sent:
                await lead.fail(error, answered=not run.left)
            elif run.left:
                await leave(lead)
            else:  # this request's own deadline: one that waits longer may still be served
                await lead.step_down()
            raise
        except BaseException:
            if run.sent:  # given up in the middle, at the end of the process: a retry is told
                message = "The gateway ended before the image service answered."
                await lead.fail(UpstreamAmbiguous(message), answered=False)
            else:
                await leave(lead)
            raise
        if len(urls) < plan.images:
            await lead.step_down(answered=False)
            raise ClientGone("The client closed the connection.")
        record = record_of(plan, urls, self._clock.now())
        await lead.finish(record, keep_s)
        return record


def to_entry(caller: Caller, plan: Plan, options: RequestOptions, context: RequestContext) -> Entry:
    """Everything by which the request may find a result."""
    cache, control = caller.tenant.cache, options.control
    key = fingerprint(plan)
    shared = is_cacheable(cache.mode, plan) and not control.no_store
    max_age_s = control.max_age_s
    return Entry(
        scope=scope_of(caller.tenant.name, cache.group),
        request=context.request_id,
        plan=key,
        images=plan.images,
        cache_key=key if shared else None,
        max_age_ms=None if max_age_s is None else max_age_s * 1000,
        fresh=control.no_cache,
        only_if_cached=control.only_if_cached,
        needs_url=plan.response_format == "url",
        idempotency=options.idempotency,
        adoption=options.adoption,
        is_retry=options.is_retry,
        takes_orphans=not control.no_store and max_age_s is None,
    )


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
