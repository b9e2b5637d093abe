"""What this worker may admit by itself while the store is away; 0014 has the promises."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from gateway.store.availability import Share
from gateway.store.limits import Limits


class Loss(StrEnum):
    LOCAL = "local"
    """This worker enforces its share of the limit."""
    ALLOW = "allow"
    REFUSE = "refuse"


class OnLoss(Struct, frozen=True):
    rates: Loss = Loss.LOCAL
    """Requests and images per minute, concurrent requests."""
    budgets: Loss = Loss.REFUSE
    """Images per day, spend per month. `local` counts from the start of this worker."""


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
        rates = _rates(limits)
        budgets = (limits.images_per_day, limits.spend_per_month)
        if _refuses(self._on_loss.rates, rates) or _refuses(self._on_loss.budgets, budgets):
            return None
        return Limits(
            *(self._part(limit, self._on_loss.rates) for limit in rates),
            *(self._part(limit, self._on_loss.budgets) for limit in budgets),
        )

    def shown(self, limits: Limits) -> Limits | None:
        """This worker's share of the rates, if it enforces one: budgets are unknown to it."""
        if self._on_loss.rates is not Loss.LOCAL:
            return None
        return Limits(*(self._part(limit, Loss.LOCAL) for limit in _rates(limits)))

    def _part(self, limit: int | None, policy: Loss) -> int | None:
        return None if limit is None or policy is Loss.ALLOW else self.share.of(limit)


def _rates(limits: Limits) -> tuple[int | None, ...]:
    """In the order of `Limits`, before the budgets."""
    return limits.requests_per_minute, limits.images_per_minute, limits.concurrent_requests


def _refuses(policy: Loss, limits: tuple[int | None, ...]) -> bool:
    return policy is Loss.REFUSE and any(limit is not None for limit in limits)
