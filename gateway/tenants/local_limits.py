"""What this worker may admit by itself while the store is away; 0014 has the promises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from gateway.config import OnLoss
from gateway.store.availability import Share
from gateway.store.limits import Limits

Policy = Literal["local", "allow", "refuse"]
"""For rates and for budgets, as configured; a `local` budget counts from this worker's start."""


class LocalLimits:
    """This worker's place among the live ones, and its share of every limit."""

    def __init__(self, on_loss: OnLoss = OnLoss(), share: Share = Share()) -> None:
        self._on_loss = on_loss
        self.share = share
        """At first as given, then as last learnt from the store."""
        self._shrinks_at = 0.0

    def learn(self, share: Share, now: float, lease_s: float) -> None:
        """At `now`, in steady seconds; fewer workers count only after a lease: data may be lost."""
        if share.workers >= self.share.workers:
            self._shrinks_at = now + lease_s
            self.share = share
        elif now >= self._shrinks_at:
            self.share = share

    def enforced(self, limits: Limits) -> Limits | None:
        """What this worker enforces without the store; None refuses every request."""
        rates = (limits.requests_per_minute, limits.images_per_minute, limits.concurrent_requests)
        budgets = (limits.images_per_day, limits.spend_per_month)
        on_loss = self._on_loss
        if _refuses(on_loss.rates, rates) or _refuses(on_loss.budgets, budgets):
            return None
        return self._parts(limits, on_loss.rates, on_loss.budgets)

    def shown(self, limits: Limits) -> Limits | None:
        """This worker's share of the rates, if it enforces one: budgets are unknown to it."""
        if self._on_loss.rates != "local":
            return None
        return self._parts(limits, "local", "allow")

    def _parts(self, limits: Limits, rates: Policy, budgets: Policy) -> Limits:
        return Limits(
            requests_per_minute=self._part(limits.requests_per_minute, rates),
            images_per_minute=self._part(limits.images_per_minute, rates),
            concurrent_requests=self._part(limits.concurrent_requests, rates),
            images_per_day=self._part(limits.images_per_day, budgets),
            spend_per_month=self._part(limits.spend_per_month, budgets),
        )

    def _part(self, limit: int | None, policy: Policy) -> int | None:
        return None if limit is None or policy == "allow" else self.share.of(limit)


def _refuses(policy: Policy, limits: Iterable[int | None]) -> bool:
    return policy == "refuse" and any(limit is not None for limit in limits)
