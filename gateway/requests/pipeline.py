"""One image request from the caller's body to its result, top to bottom (docs/architecture.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import cast

from msgspec import Struct

from gateway.domain.catalogue import Catalogue
from gateway.domain.clock import Clock
from gateway.domain.errors import (
    GatewayError,
    IdempotencyConflict,
    NotCached,
    UpstreamAmbiguous,
)
from gateway.domain.pictures import NO_INPUTS, Inputs
from gateway.observability.context import ClientOutcome, RequestContext
from gateway.protocol.openai import ImageRequest
from gateway.requests.calls import Generator, Work
from gateway.requests.client import Client, PartFeed, Stopped
from gateway.results import (
    Doubtful,
    Entry,
    Follow,
    Found,
    How,
    Idempotency,
    Lead,
    Ledger,
    Refusal,
)
from gateway.results.cache_policy import (
    CacheControl,
    Record,
    fingerprint,
    is_cacheable,
    record_of,
    scope_of,
)
from gateway.results.shared_errors import decode_error
from gateway.store.requests import EnterRequest, Leave
from gateway.tenants.admission import Admission, Ticket
from gateway.tenants.keys import Caller, choose_model
from gateway.translate.request import Plan, SizePolicy, to_dashscope

CACHE = {
    How.HIT: "hit",
    How.JOINED: "joined",
    How.REPLAYED: "replayed",
    How.ADOPTED: "replayed",
}
GENERATION_S = 30.0
"""What a call takes. With less time left, or less than half, it would be paid for in vain."""
LAST_S = 1.0
"""How long a worker's end waits for sent calls, and again for what is given up."""


class RequestOptions(Struct, frozen=True, kw_only=True):
    """What a client asks beside the body: how old a result may be, and whether it asked before."""

    retry_key: str
    """Hash of tenant, key and body."""
    control: CacheControl = CacheControl()
    idempotency: Idempotency | None = None
    is_retry: bool = False
    client_timeout_s: float
    silence_s: float
    """How long a streamed answer may be silent meanwhile."""
    deadline_s: float
    """How long a generation may take, whether its client still waits or not."""


class Result(Struct, frozen=True):
    plan: Plan
    entry: Entry
    place: Found[Record] | Lead
    record: Record
    cache: str
    """`x-cache`."""
    cache_s: float
    """How long the tenant's cache keeps it."""
    deadline: float
    """Until when the images can be fetched, in steady seconds."""


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
        self._tasks: set[asyncio.Task[object]] = set()

    def use(self, catalogue: Catalogue, default_model: str) -> None:
        """Follow a changed configuration, from the next request on."""
        self._catalogue = catalogue
        self._default_model = default_model

    def plan(
        self,
        caller: Caller,
        request: ImageRequest,
        context: RequestContext,
        size_policy: SizePolicy | None = None,
        inputs: Inputs = NO_INPUTS,
    ) -> Plan:
        """By the tenant's `size_policy` if none. Raises GatewayError for the impossible."""
        tenant = caller.tenant
        choice = choose_model(
            self._catalogue,
            tenant,
            request.model,
            self._default_model,
            request.quality,
            is_edit=inputs is not NO_INPUTS,
        )
        context.model = choice.family
        return to_dashscope(request, choice, size_policy or tenant.size_policy, inputs)

    async def serve(
        self,
        caller: Caller,
        plan: Plan,
        context: RequestContext,
        options: RequestOptions,
        client: Client,
    ) -> Result:
        """Find the images of a request, or have them made. Raises GatewayError if it cannot."""
        began_at = self._clock.steady()
        ticket = self._admission.ticket(caller, plan, context)
        entry = to_entry(ticket, options)
        request = EnterRequest(entry=entry, take=ticket.wanted, lead_ms=self._ledger.times.lead_ms)
        with context.phase("store"):
            entered = await self._ledger.enter(request)
        self._admission.check(ticket, entered.verdict, was_following=False)
        self._begin(ticket, client, options.client_timeout_s)
        try:
            while isinstance(place := entered.place, Follow):
                self._leave_after(ticket, entry, place)
                entered = await self._ledger.follow(request, place, client.wait)
                self._admission.check(ticket, entered.verdict, was_following=True)
            if isinstance(place, Lead | Found | Doubtful) and not entered.has_left:
                self._leave_after(ticket, entry, place)
            match place:
                case Lead():
                    if directive := options.control.forces:
                        self._admission.forced(ticket, directive)
                    work = self._work(entry, place, ticket, client, began_at, options)
                    record, cache = await self._lead(entry, place, work), cached(entry)
                case Found(result=record, how=how):
                    cache = CACHE[how]
                case _:
                    raise refusal(place, context)
            client.check()
        except Stopped as stopped:
            raise stopped.error from None
        finally:
            self._end(context, client)
        deadline = began_at + options.deadline_s
        return Result(plan, entry, place, record, cache, caller.tenant.cache.ttl_s, deadline)

    async def attach_rate_limit_headers(self, caller: Caller, context: RequestContext) -> None:
        """Add the tenant's limits to a request that failed before they were asked."""
        limits = self._admission.limits_of(caller)
        if context.limit_headers is not None or (
            limits.requests_per_minute is None and limits.images_per_minute is None
        ):
            return
        with context.phase("store"):
            verdict = await self._ledger.levels(caller.tenant.name, limits)
        self._admission.note(caller.tenant.name, verdict, context)

    async def drain(self, given_up: asyncio.Event) -> None:
        """Wait for the work of clients that have left; after `given_up`, only for its clean-up."""
        if self._tasks:
            ended = asyncio.create_task(asyncio.wait(set(self._tasks)))
            cut = asyncio.create_task(given_up.wait())
            await asyncio.wait([ended, cut], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            cut.cancel()
        if self._tasks:
            _, rest = await asyncio.wait(set(self._tasks), timeout=LAST_S)
            for task in rest:
                task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=LAST_S)

    def _begin(self, ticket: Ticket, client: Client, timeout_s: float) -> None:
        """Count the client's time from here on."""
        self._tasks.add(cast("asyncio.Task[object]", asyncio.current_task()))
        ticket.context.waits()
        client.start_timer(timeout_s)

    def _end(self, context: RequestContext, client: Client) -> None:
        self._tasks.discard(cast("asyncio.Task[object]", asyncio.current_task()))
        context.goes_on()
        client.ends()

    def _leave_after(
        self,
        ticket: Ticket,
        entry: Entry,
        place: Found[Record] | Follow | Lead | Doubtful,
        *,
        has_left: bool = False,
    ) -> None:
        """After its answer, free the request's place and note what became of its client.

        `has_left`: it leaves by its end, which presumes that its answer is delivered.
        """
        id_ = None if isinstance(place, Doubtful) else place.id  # it is no client of the doubt
        ticket.context.after_answer = partial(self._leave, ticket, entry, id_, has_left=has_left)

    async def _leave(
        self,
        ticket: Ticket,
        entry: Entry,
        id_: str | None,
        outcome: ClientOutcome,
        *,
        has_left: bool,
    ) -> None:
        if has_left and outcome is ClientOutcome.DELIVERED:
            return
        leave = Leave(
            settlement=ticket.settlement(),
            outcome=outcome,
            scope=entry.scope,
            generation=id_,
            retry_key=entry.retry_key,
        )
        await self._ledger.leave(leave)

    def _work(
        self,
        entry: Entry,
        lead: Lead,
        ticket: Ticket,
        client: Client,
        began_at: float,
        options: RequestOptions,
    ) -> Work:
        is_single = len(ticket.plan.calls) == 1
        deadline = began_at + options.deadline_s
        give = None if is_single else client.on_part  # of one call all follows at once
        feed = PartFeed(entry, lead, ticket.plan, give, deadline) if give else None

        kept = {index: len(urls) for index, urls in lead.parts.items()}

        async def keep(index: int, urls: Sequence[str]) -> None:
            kept[index] = len(urls)
            is_last = sum(kept.values()) == ticket.plan.images  # the end follows, with all of them
            await self._ledger.progress(lead, index, urls, None if is_last else ticket.settlement())
            if feed is not None:
                feed.brought(index, urls)

        left_s = min(options.client_timeout_s, options.deadline_s)
        work = Work(
            ticket,
            client,
            slot_by=began_at + left_s - min(GENERATION_S, left_s / 2),
            deadline=deadline,
            parts=lead.parts,
            keep=keep,
        )
        if feed is not None:
            for index, urls in lead.parts.items():
                feed.brought(index, urls)
        client.is_under_way = work.is_under_way
        client.on_leave = partial(self._ledger.client_gone, lead, entry.retry_key)
        return work

    async def _lead(self, entry: Entry, lead: Lead, work: Work) -> Record:
        ticket, ledger = work.ticket, self._ledger
        verdict, is_made = None, False
        try:
            urls = await self._generator.generate(work)
            record = record_of(work.plan, urls, self._clock.now())
            is_made = True
            cache_s = ticket.caller.tenant.cache.ttl_s if entry.cache_key else 0.0
            # A kilobyte that is sent at once: nobody is slow to read it.
            leaves = entry.needs_url and not work.client.left
            self._leave_after(ticket, entry, lead, has_left=leaves)
            with ticket.context.phase("store"):
                verdict = await ledger.finish(
                    lead, entry, record, cache_s, ticket.settlement(), leaves=leaves
                )
        except BaseException as error:
            if not is_made:
                why = shared_failure(error, ticket)
                verdict = await ledger.fail(lead, entry, why, ticket.settlement())
            raise
        finally:
            self._admission.settled(ticket, verdict)
        return record


def shared_failure(error: BaseException, ticket: Ticket) -> GatewayError | None:
    """What those who wait for the same are told; None: one of them takes over."""
    if isinstance(error, GatewayError):
        return error
    if ticket.doubtful and not isinstance(error, Stopped):  # given up, as the process ends
        return UpstreamAmbiguous("The gateway ended before the image service answered.")
    return None


def cached(entry: Entry) -> str:
    """`x-cache` of a leader."""
    return "bypass" if entry.cache_key is None else "miss"


def to_entry(ticket: Ticket, options: RequestOptions) -> Entry:
    """Everything by which the request may find a result."""
    plan, cache = ticket.plan, ticket.caller.tenant.cache
    control = options.control if cache.client_directives == "obey" else CacheControl()
    key = fingerprint(plan)
    shared = is_cacheable(cache.mode, plan) and not control.no_store
    max_age_s = control.max_age_s
    return Entry(
        scope=scope_of(ticket.tenant, cache.group),
        request=ticket.context.request_id,
        plan_hash=key,
        images=plan.images,
        cache_key=key if shared else None,
        max_age_ms=None if max_age_s is None else max_age_s * 1000,
        fresh=control.no_cache,
        only_if_cached=control.only_if_cached,
        needs_url=plan.response_format == "url",
        idempotency=options.idempotency,
        retry_key=options.retry_key,
        is_retry=options.is_retry,
        may_reuse_unclaimed=not control.no_store and max_age_s is None,
    )


def refusal(place: object, context: RequestContext) -> GatewayError:
    """The error for a request that can have no place."""
    match place:
        case Doubtful(payload=payload, age_ms=age_ms):
            context.answer_headers["x-gateway-repeated-error"] = f"{age_ms / 1000:.0f}s"
            return decode_error(payload)
        case Refusal.CONFLICT:
            return IdempotencyConflict("This Idempotency-Key came before with a different body.")
        case _:
            return NotCached("No result is kept for this request, and only-if-cached was asked.")
