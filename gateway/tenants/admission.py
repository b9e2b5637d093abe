"""Tenants' limits at the entry of a request, and its bookings while it is served."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.config import Limits as LimitsConfig
from gateway.config import Tenant
from gateway.domain.errors import (
    BudgetExhausted,
    GatewayError,
    ServiceUnavailable,
)
from gateway.domain.prices import Money
from gateway.observability.context import RequestContext
from gateway.observability.metrics import Metrics
from gateway.store.limits import (
    CONCURRENCY_RETRY_MS,
    Limits,
    Reason,
    Reservation,
    Settlement,
    TakeRequest,
    Verdict,
)
from gateway.tenants.keys import Caller
from gateway.tenants.refusals import rate_headers, refusal
from gateway.tenants.usage_log import PaidCall, UsageLog
from gateway.translate.request import Plan

MEGAPIXEL = 1_000_000
SMOOTHING = 8
"""Requests over which a tenant's usual duration is smoothed."""
LONGEST_HINT_S = 59.0
"""OpenAI's SDKs take no `retry-after` of a minute or more."""
LEASE_MS = 30_000
"""How long the reservation of a killed worker's request lasts."""


class Books(Struct, frozen=True):
    doubtful: bool = True
    """Whether images of unknown outcome count against the budgets."""
    zone: str = "UTC"
    """Where days and months begin."""


class Ticket:
    """One request's claim on its tenant's limits, and what it has paid for so far."""

    __slots__ = (
        "_admission",
        "caller",
        "calls",
        "context",
        "cost",
        "doubtful",
        "doubtful_cost",
        "images",
        "plan",
        "since",
        "wanted",
    )

    def __init__(
        self,
        admission: Admission,
        caller: Caller,
        plan: Plan,
        context: RequestContext,
        wanted: TakeRequest,
        since: float,
    ) -> None:
        self._admission = admission
        self.caller = caller
        self.plan = plan
        self.context = context
        self.wanted = wanted
        """Everything that the request may use, if it has to make all of its images."""
        self.since = since
        """Steady time."""
        self.images = 0
        """Images that the vendor has made for it."""
        self.doubtful = 0
        """Images of calls whose outcome nobody knows."""
        self.cost = self.doubtful_cost = 0
        """In millionths of the currency, on the accounts that were called."""
        self.calls = 0
        """Those that are in the usage record."""

    @property
    def tenant(self) -> str:
        return self.caller.tenant.name

    def book(self, images: int, account: str | None = None) -> None:
        """The vendor has made so many more, and bills them to that account."""
        cost = cost_of(self.plan, images, account)
        self.images += images
        self.cost += cost
        self._admission.record(self, images, cost, doubtful=False)
        self.calls += bool(images)

    def doubt(self, images: int, account: str | None = None) -> None:
        """The vendor may have made so many more; nobody knows."""
        cost = cost_of(self.plan, images, account)
        self.doubtful += images
        self.doubtful_cost += cost
        self._admission.record(self, images, cost, doubtful=True)
        self.calls += bool(images)

    def settlement(self) -> Settlement:
        return self._admission.settlement(self)


class Admission:
    """Asks for what requests may use, reads the verdicts, and books what they used.

    `usage` is None without a usage record; `now` gives Unix seconds, `steady` never goes back.
    """

    def __init__(
        self,
        tenants: Iterable[Tenant],
        *,
        metrics: Metrics,
        usage: UsageLog | None,
        now: Callable[[], float],
        steady: Callable[[], float],
        books: Books = Books(),
    ) -> None:
        self.use(tenants)
        self._metrics = metrics
        self._usage = usage
        self._now = now
        self._steady = steady
        self._books = books
        self._held_s: dict[str, float] = {}
        """How long a generation of each tenant holds its place, smoothed."""
        self._verdicts: dict[str, Verdict] = {}

    def verdicts(self) -> dict[str, Verdict]:
        """The latest of each tenant with a budget, since the last call."""
        latest, self._verdicts = self._verdicts, {}
        return latest

    def use(self, tenants: Iterable[Tenant]) -> None:
        """Follow a changed configuration, from the next request on."""
        self._limits = {tenant.name: to_store_limits(tenant.limits) for tenant in tenants}

    def ticket(self, caller: Caller, plan: Plan, context: RequestContext) -> Ticket:
        """For a request that is about to enter."""
        context.log_fields |= {"model": plan.model, "n": plan.images, "size": size_of(plan)}
        reservation = Reservation(
            context.request_id, plan.family, plan.images, cost_of(plan, plan.images)
        )
        wanted = TakeRequest(caller.tenant.name, self.limits_of(caller), reservation, LEASE_MS)
        return Ticket(self, caller, plan, context, wanted, self._steady())

    def check(self, ticket: Ticket, verdict: Verdict, *, was_following: bool) -> None:
        """Note the verdict. Raises RateLimited, BudgetExhausted or ServiceUnavailable for a
        refusal.

        `was_following`: it was admitted as a follower, and has to pay now.
        """
        tenant = ticket.tenant
        self.note(tenant, verdict, ticket.context)
        if verdict.allowed:
            if not was_following:
                by = "store" if verdict.by_store else "worker"
                self._metrics.admitted.labels(tenant, by).inc()
            return
        reason = verdict.reason or Reason.STORE_UNAVAILABLE
        self._metrics.limited.labels(tenant, reason).inc()
        raise self._refusal(ticket, self._with_hint(tenant, verdict), was_following=was_following)

    def _refusal(self, ticket: Ticket, verdict: Verdict, *, was_following: bool) -> GatewayError:
        """Made here: the frame that raises an error must not hold it, or both are garbage."""
        wanted = ticket.wanted
        refused = refusal(verdict, wanted.limits, wanted.reservation, self._books.zone)
        if was_following and isinstance(refused, BudgetExhausted):
            # Where the one that made them was killed, its part is given back with its lease.
            message = "The request that made these images ended without them; try again."
            return ServiceUnavailable(message, retry_after_s=LEASE_MS / 1000)
        return refused

    def note(self, tenant: str, verdict: Verdict | None, context: RequestContext) -> None:
        """Where the limits stand; an answer not yet sent gets the headers."""
        if verdict is None:
            return
        if verdict.requests is not None or verdict.images is not None:
            context.limit_headers = partial(rate_headers, verdict)
        if verdict.day is not None or verdict.month is not None:
            self._verdicts[tenant] = verdict

    def forced(self, ticket: Ticket, directive: str) -> None:
        """The request's Cache-Control is why it pays."""
        self._metrics.forced.labels(ticket.tenant, directive).inc()

    def settlement(self, ticket: Ticket) -> Settlement:
        """What a request has paid for so far."""
        images, cost = ticket.images, ticket.cost
        if self._books.doubtful:
            images, cost = images + ticket.doubtful, cost + ticket.doubtful_cost
        return Settlement(
            ticket.tenant,
            ticket.context.request_id,
            ticket.plan.family,
            images,
            cost,
            self.limits_of(ticket.caller),
        )

    def settled(self, ticket: Ticket, verdict: Verdict | None) -> None:
        """A generation has ended."""
        spent = str(Money(ticket.cost))
        ticket.context.log_fields |= {"images": ticket.images, "cost": spent}
        self.note(ticket.tenant, verdict, ticket.context)
        held_s = self._steady() - ticket.since
        known_s = self._held_s.get(ticket.tenant, held_s)
        self._held_s[ticket.tenant] = known_s + (held_s - known_s) / SMOOTHING

    def limits_of(self, caller: Caller) -> Limits:
        """The current ones: a tenant may have been removed while its request was read."""
        return self._limits.get(caller.tenant.name) or to_store_limits(caller.tenant.limits)

    def _with_hint(self, tenant: str, verdict: Verdict) -> Verdict:
        """With many requests, begun at random, one ends in each such part of their duration."""
        places = verdict.concurrent
        if verdict.reason is not Reason.CONCURRENT_REQUESTS or places is None or not places.limit:
            return verdict
        hint_s = min(LONGEST_HINT_S, self._held_s.get(tenant, 0.0) / places.limit)
        return replace(verdict, retry_after_ms=max(CONCURRENCY_RETRY_MS, math.ceil(hint_s * 1000)))

    def record(self, ticket: Ticket, images: int, cost: int, *, doubtful: bool) -> None:
        """One upstream call brought so many images, or may have."""
        if not images:
            return
        plan, caller, tenant = ticket.plan, ticket.caller, ticket.tenant
        if doubtful:
            self._metrics.doubtful.labels(tenant, plan.family).inc(images)
        else:
            self._metrics.images.labels(tenant, plan.family, tier(plan)).inc(images)
            self._metrics.spend.labels(tenant, plan.family).inc(cost / 1_000_000)
        if self._usage is None:
            return
        call = PaidCall(
            at=datetime.fromtimestamp(self._now(), UTC),
            request_id=ticket.context.request_id,
            tenant=tenant,
            key=caller.key.label,
            model=plan.model,
            size=size_of(plan),
            images=images,
            cost=cost,
            call=ticket.calls,
            doubtful=doubtful,
        )
        try:
            self._usage.append(call)
        except OSError as fault:
            # The images are paid for: their client gets them, and the log gets the line.
            self._metrics.usage_lost.inc()
            lost = msgspec.to_builtins(call)
            ticket.context.log.exception("usage_record_lost", cause=str(fault), record=lost)


def cost_of(plan: Plan, images: int, account: str | None = None) -> int:
    """Cost of some of a plan's images, in millionths; without an account, on the dearest."""
    return plan.cost(account).micros * images


def tier(plan: Plan) -> str:
    """The size of the images in whole megapixels, rounded up; `auto` where the model chooses."""
    return "auto" if plan.size is None else f"{math.ceil(plan.size.area / MEGAPIXEL)}mp"


def size_of(plan: Plan) -> str | None:
    """As `WxH`; None where the model chooses."""
    return None if plan.size is None else str(plan.size)


def to_store_limits(limits: LimitsConfig) -> Limits:
    """With money in micro-units."""
    spend = limits.spend_per_month
    return Limits(
        requests_per_minute=limits.requests_per_minute,
        images_per_minute=limits.images_per_minute,
        concurrent_requests=limits.concurrent_requests,
        images_per_day=limits.images_per_day,
        spend_per_month=None if spend is None else spend.micros,
    )
