"""Tenants' limits at the door of a request, and the books at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from itertools import count

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.config import Limits as LimitsConfig
from gateway.config import Tenant
from gateway.domain.catalogue import Money
from gateway.domain.errors import (
    BudgetExhausted,
    GatewayError,
    LargerThanLimit,
    RateLimited,
    ServiceUnavailable,
)
from gateway.observability.context import RequestContext
from gateway.observability.metrics import Metrics
from gateway.store.base import (
    CONCURRENCY_RETRY_MS,
    Limits,
    LimitStatus,
    Reason,
    Reservation,
    Settlement,
    Verdict,
)
from gateway.tenants.keys import Caller
from gateway.tenants.limiter import Limiter
from gateway.tenants.usage_log import Generation, UsageLog
from gateway.translate.request import Plan

WHAT = {
    Reason.REQUESTS_PER_MINUTE: "requests per minute",
    Reason.IMAGES_PER_MINUTE: "images per minute",
    Reason.CONCURRENT_REQUESTS: "concurrent requests",
    Reason.IMAGES_PER_DAY: "images per day",
    Reason.SPEND_PER_MONTH: "spend per month",
}
MEGAPIXEL = 1_000_000
SMOOTHING = 8
"""Requests over which a tenant's usual duration is smoothed."""
LONGEST_HINT_S = 59.0
"""OpenAI's SDKs take no `retry-after` of a minute or more."""


class AdmissionTicket(Struct, frozen=True):
    """An admitted request: what it holds until it is settled, and how to book it."""

    caller: Caller
    plan: Plan
    reservation: Reservation
    context: RequestContext
    since: float
    """Steady time."""


class Admission:
    """Admits requests against their tenants' limits, and books what they used.

    `usage` is None where no usage record is configured; `now` gives Unix seconds, `steady` those
    of a clock that is never set.
    """

    def __init__(
        self,
        limiter: Limiter,
        tenants: Iterable[Tenant],
        *,
        metrics: Metrics,
        usage: UsageLog | None,
        now: Callable[[], float],
        steady: Callable[[], float],
    ) -> None:
        self._limiter = limiter
        self.use(tenants)
        self._metrics = metrics
        self._usage = usage
        self._now = now
        self._steady = steady
        self._admissions = count()
        self._held_s: dict[str, float] = {}
        """How long a generation of each tenant holds its place, smoothed."""
        self._verdicts: dict[str, Verdict] = {}

    def verdicts(self) -> dict[str, Verdict]:
        """The last verdict on each tenant with a budget, since this was last called."""
        latest, self._verdicts = self._verdicts, {}
        return latest

    def use(self, tenants: Iterable[Tenant]) -> None:
        """Follow a changed configuration, from the next request on."""
        self._limits = {tenant.name: to_store_limits(tenant.limits) for tenant in tenants}

    async def admit(
        self, caller: Caller, plan: Plan, context: RequestContext, *, pays: bool = True
    ) -> AdmissionTicket:
        """Reserve everything the request may use; rate-limit headers go to its answer.

        `pays` is false for one that will be given another's images: it counts as a request only.

        Raises:
            RateLimited, BudgetExhausted, ServiceUnavailable: refused, and nothing was reserved.
        """
        images = plan.images if pays else 0
        cost = cost_of(plan, images)
        # One that the store did not answer may be carried out and taken back later, by its name:
        # no other admission of the same request may go by it.
        name = f"{context.request_id}-{next(self._admissions)}"
        reservation = Reservation(name, plan.family, images, cost)
        context.log_fields |= {"model": plan.model, "n": plan.images, "size": size_of(plan)}
        verdict = await self._take(caller, reservation, context)
        by = "store" if verdict.by_store else "worker"
        self._metrics.admitted.labels(caller.tenant.name, by).inc()
        return AdmissionTicket(caller, plan, reservation, context, self._steady())

    async def pay(self, held: AdmissionTicket) -> AdmissionTicket:
        """Reserve images and money, too, for one that has to make what it was to be given.

        Raises:
            RateLimited, ServiceUnavailable: refused, and its place is left to it.
        """
        plan = held.plan
        cost = cost_of(plan, plan.images)
        wanted = replace(held.reservation, images=plan.images, cost=cost)
        try:
            await self._take(held.caller, wanted, held.context)
        except BudgetExhausted as full:
            # Where the one that made them was killed, its part is given back with its lease.
            message = "Whoever made these images ended without them; try again."
            raise ServiceUnavailable(message, retry_after_s=self._limiter.lease_s) from full
        return replace(held, reservation=wanted)

    async def _take(self, caller: Caller, wanted: Reservation, context: RequestContext) -> Verdict:
        tenant, limits = caller.tenant.name, self._limits_of(caller)
        with context.phase("store"):
            verdict = await self._limiter.admit(tenant, limits, wanted)
        self._tell(tenant, verdict, context)
        if not verdict.allowed:
            self._metrics.limited.labels(tenant, verdict.reason or Reason.STORE_UNAVAILABLE).inc()
            raise refusal(self._with_hint(tenant, verdict), limits, wanted)
        return verdict

    async def attach_rate_limit_headers(self, caller: Caller, context: RequestContext) -> None:
        """Where the limits stand, for the answer to a request that was never taken to them."""
        limits = self._limits_of(caller)
        is_told = context.headers is not dict
        if is_told or (limits.requests_per_minute is None and limits.images_per_minute is None):
            return
        with context.phase("store"):
            verdict = await self._limiter.levels(caller.tenant.name, limits)
        if verdict is not None:
            self._tell(caller.tenant.name, verdict, context)

    async def settle(self, held: AdmissionTicket, images: int, request_id: str) -> None:
        """End the request; `images` were generated and billed, the rest is given back.

        An answer that was not sent yet tells the limits as they are then.
        """
        plan, tenant = held.plan, held.caller.tenant.name
        cost = cost_of(plan, images)
        if images:
            self._book(held, images, cost, request_id)
        held.context.log_fields |= {"images": images, "cost": str(Money(cost))}
        settlement = Settlement(
            tenant, held.reservation.id, plan.family, images, cost, self._limits_of(held.caller)
        )
        with held.context.phase("store"):
            verdict = await self._limiter.settle(settlement)
        if verdict is not None:
            self._tell(tenant, verdict, held.context)
        if held.reservation.images:
            self._learn(tenant, self._steady() - held.since)

    def _limits_of(self, caller: Caller) -> Limits:
        # A tenant may have been removed while its request was being read or served.
        return self._limits.get(caller.tenant.name) or to_store_limits(caller.tenant.limits)

    def _learn(self, tenant: str, held_s: float) -> None:
        known_s = self._held_s.get(tenant, held_s)
        self._held_s[tenant] = known_s + (held_s - known_s) / SMOOTHING

    def _with_hint(self, tenant: str, verdict: Verdict) -> Verdict:
        """With a better guess of when a place is free.

        Of so many requests, begun at any time, one ends in each such part of their usual duration.
        """
        places = verdict.concurrent
        if verdict.reason is not Reason.CONCURRENT_REQUESTS or places is None or not places.limit:
            return verdict
        hint_s = min(LONGEST_HINT_S, self._held_s.get(tenant, 0.0) / places.limit)
        return replace(verdict, retry_after_ms=max(CONCURRENCY_RETRY_MS, math.ceil(hint_s * 1000)))

    def _tell(self, tenant: str, verdict: Verdict, context: RequestContext) -> None:
        context.headers = partial(rate_headers, verdict)
        if verdict.day is not None or verdict.month is not None:
            self._verdicts[tenant] = verdict

    def _book(self, held: AdmissionTicket, images: int, cost: int, request_id: str) -> None:
        plan, caller = held.plan, held.caller
        tenant = caller.tenant.name
        self._metrics.images.labels(tenant, plan.family, tier(plan)).inc(images)
        self._metrics.spend.labels(tenant, plan.family).inc(cost / 1_000_000)
        if self._usage is None:
            return
        generation = Generation(
            at=datetime.fromtimestamp(self._now(), UTC),
            request_id=request_id,
            tenant=tenant,
            key=caller.key.label,
            model=plan.model,
            size=size_of(plan),
            images=images,
            cost=cost,
        )
        try:
            self._usage.append(generation)
        except OSError as fault:
            # The images are paid for: their client gets them, and the log gets the line.
            self._metrics.usage_lost.inc()
            lost = msgspec.to_builtins(generation)
            held.context.log.exception("usage_record_lost", cause=str(fault), record=lost)


def cost_of(plan: Plan, images: int) -> int:
    """Micro-units of currency for so many of a plan's images."""
    return plan.entry.cost(plan.size).micros * images


def tier(plan: Plan) -> str:
    """The size of the images in whole megapixels, rounded up; `auto` where the model chooses."""
    return "auto" if plan.size is None else f"{math.ceil(plan.size.area / MEGAPIXEL)}mp"


def size_of(plan: Plan) -> str | None:
    """As `WxH`; none where the model chooses."""
    return None if plan.size is None else str(plan.size)


def to_store_limits(limits: LimitsConfig) -> Limits:
    """The same limits with money in micro-units."""
    spend = limits.spend_per_month
    return Limits(
        requests_per_minute=limits.requests_per_minute,
        images_per_minute=limits.images_per_minute,
        concurrent_requests=limits.concurrent_requests,
        images_per_day=limits.images_per_day,
        spend_per_month=None if spend is None else spend.micros,
    )


def rate_headers(verdict: Verdict) -> dict[str, str]:
    """`x-ratelimit-*` for the limits that the tenant has.

    OpenAI writes the reset of requests as a duration ("1.5s") and that of images as whole seconds.
    """
    headers: dict[str, str] = {}
    if verdict.requests is not None:
        headers |= level_headers("requests", verdict.requests)
        headers["x-ratelimit-reset-requests"] = f"{verdict.requests.reset_ms / 1000:g}s"
    if verdict.images is not None:
        headers |= level_headers("images", verdict.images)
        headers["x-ratelimit-reset-images"] = str(math.ceil(verdict.images.reset_ms / 1000))
    return headers


def level_headers(what: str, level: LimitStatus) -> dict[str, str]:
    """Limit and remainder of one limit."""
    return {
        f"x-ratelimit-limit-{what}": str(level.limit),
        f"x-ratelimit-remaining-{what}": str(level.remaining),
    }


def refusal(verdict: Verdict, limits: Limits, wanted: Reservation) -> GatewayError:
    """The error for a verdict that refuses, in words that say what to do."""
    wait_s = None if verdict.retry_after_ms is None else verdict.retry_after_ms / 1000
    reason = verdict.reason
    if reason is None or reason is Reason.STORE_UNAVAILABLE:
        message = "The gateway cannot check this tenant's limits just now; try again."
        return ServiceUnavailable(message, retry_after_s=wait_s)
    if reason is Reason.IMAGES_PER_DAY:
        return day_refusal(verdict.day, limits.images_per_day, wanted.images)
    if reason is Reason.SPEND_PER_MONTH:
        return month_refusal(verdict.month, limits.spend_per_month, wanted.cost)
    most = limits.images_per_minute
    # Asked of the limit itself: without the store, the verdict is on this worker's share of it.
    if reason is Reason.IMAGES_PER_MINUTE and most is not None and wanted.images > most:
        return LargerThanLimit(
            f"This request asks for {wanted.images} images, and this tenant may make {most} per "
            f"minute: ask for at most {most} at a time.",
            param="n",
        )
    when = "later" if wait_s is None else f"in {wait_s:.3g} s"
    return RateLimited(
        f"Rate limit reached: {WHAT[reason]}. Try again {when}.", retry_after_s=wait_s
    )


def day_refusal(level: LimitStatus | None, budget: int | None, images: int) -> BudgetExhausted:
    """Of a request that is more than what is left of the day's images, or more than all of them."""
    if budget is not None and images > budget:
        return BudgetExhausted(
            f"This request asks for {images} images, and this tenant's whole budget is {budget} "
            f"per day: ask for at most {budget} at a time.",
            param="n",
        )
    if level is not None and level.remaining:
        return BudgetExhausted(
            f"This request asks for {images} images, and this tenant's budget for today has "
            f"{level.remaining} left: ask for fewer, or wait for midnight UTC.",
            param="n",
        )
    return BudgetExhausted(
        "This tenant's budget of images per day is used up; it begins anew at midnight UTC."
    )


def month_refusal(level: LimitStatus | None, budget: int | None, cost: int) -> BudgetExhausted:
    """Of a request that costs more than what is left of the month's money, or more than all of it.

    Amounts are the operator's business; `gateway usage` shows them.
    """
    if budget is not None and cost > budget:
        return BudgetExhausted(
            "This request alone costs more than this tenant's whole budget of spend per month: "
            "ask for fewer images or a cheaper model."
        )
    if level is not None and level.remaining:
        return BudgetExhausted(
            "This request costs more than is left of this tenant's budget of spend per month: ask "
            "for fewer images or a cheaper model, or wait for the next month (UTC)."
        )
    return BudgetExhausted(
        "This tenant's budget of spend per month is used up; it begins anew with the next month "
        "(UTC)."
    )
