"""Tenants' limits at the door of a request: verdicts as headers, errors and settlements."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from gateway.config import Limits as LimitsConfig
from gateway.config import Tenant
from gateway.errors import BudgetExhausted, GatewayError, RateLimited, ServiceUnavailable
from gateway.exchange import Exchange
from gateway.limits import Limiter
from gateway.store.base import Level, Limits, Reason, Reservation, Settlement, Verdict
from gateway.translate.request import Plan

WHAT = {
    Reason.REQUESTS_PER_MINUTE: "requests per minute",
    Reason.IMAGES_PER_MINUTE: "images per minute",
    Reason.CONCURRENT_REQUESTS: "concurrent requests",
    Reason.IMAGES_PER_DAY: "images per day",
    Reason.SPEND_PER_MONTH: "spend per month",
}


class Pass(NamedTuple):
    """An admitted request: what it holds until it is settled."""

    tenant: str
    reservation: Reservation


class Admission:
    """Admits requests against their tenants' limits, and settles them."""

    def __init__(self, limiter: Limiter, tenants: Iterable[Tenant]) -> None:
        self._limiter = limiter
        self._limits = {tenant.name: to_store_limits(tenant.limits) for tenant in tenants}

    async def admit(self, tenant: Tenant, plan: Plan, exchange: Exchange) -> Pass:
        """Reserve everything the request may use; rate-limit headers go to its answer.

        Raises:
            RateLimited, BudgetExhausted, ServiceUnavailable: refused, and nothing was reserved.
        """
        cost = plan.entry.cost(plan.size).micros * plan.images
        reservation = Reservation(exchange.request_id, plan.model, plan.images, cost)
        verdict = await self._limiter.admit(tenant.name, self._limits[tenant.name], reservation)
        exchange.headers.update(rate_headers(verdict))
        if not verdict.allowed:
            raise refusal(verdict)
        return Pass(tenant.name, reservation)

    async def settle(self, held: Pass, images: int) -> None:
        """End the request; `images` were generated and billed, the rest is given back."""
        reservation = held.reservation
        cost = reservation.cost * images // reservation.images
        await self._limiter.settle(
            Settlement(held.tenant, reservation.id, reservation.model, images, cost)
        )


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


def level_headers(what: str, level: Level) -> dict[str, str]:
    """Limit and remainder of one limit."""
    return {
        f"x-ratelimit-limit-{what}": str(level.limit),
        f"x-ratelimit-remaining-{what}": str(level.remaining),
    }


def refusal(verdict: Verdict) -> GatewayError:
    """The error for a verdict that refuses."""
    wait_s = None if verdict.retry_after_ms is None else verdict.retry_after_ms / 1000
    reason = verdict.reason
    if reason is None or reason is Reason.STORE_UNAVAILABLE:
        message = "The gateway cannot check this tenant's limits just now; try again."
        return ServiceUnavailable(message, retry_after_s=wait_s)
    if reason.is_budget:
        return BudgetExhausted(f"This tenant's budget of {WHAT[reason]} is used up.")
    if wait_s is None:
        return BudgetExhausted(
            f"This request alone is larger than this tenant's limit of {WHAT[reason]}.",
            code="rate_limit_exceeded",
        )
    return RateLimited(
        f"Rate limit reached: {WHAT[reason]}. Try again in {wait_s:.3g} s.", retry_after_s=wait_s
    )
