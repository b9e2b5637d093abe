"""What a tenant may use: the store's decision, or this worker's own share while it is away.

What is promised, with W workers and any limit L:
- the store answers: never more than L, in any 60 seconds, day or month;
- the store is away, policy `local`: each worker admits its share, and all shares together are L.
  What a worker was admitted before counts in its own share, so in the 60 seconds around a loss
  or a return it is less than 2 L (3 L where the store also came back empty), never W x L;
- a request whose worker died gives everything back within its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from enum import StrEnum
from typing import Protocol

import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.store.base import (
    Limits,
    LimitStore,
    Membership,
    Reason,
    Reservation,
    Settlement,
    Share,
    StoreUnavailable,
    TakeRequest,
    Verdict,
)

ALONE_RETRY_MS = 1_000
"""Suggested wait when the store's absence refuses: it is looked for twice a second."""
OWED_MAX = 10_000
"""Settlements kept while the store is away; some hundred bytes each."""
BEAT_S = 0.5
"""Between two looks at the store: who else is there, and what is owed to it."""
FAILURES_AT_ONCE = 20
"""Settlements in a row of attempts that fail before the rest has to wait for the next one."""
RENEW_AT_ONCE = 500
"""Reservations per renewal, to keep each call to the store short."""

log = logging.getLogger(__name__)


class Loss(StrEnum):
    """What to do without the store."""

    LOCAL = "local"
    """This worker enforces its share of the limit."""
    ALLOW = "allow"
    REFUSE = "refuse"


class OnLoss(Struct, frozen=True):
    """The policy for each kind of limit."""

    rates: Loss = Loss.LOCAL
    """Requests and images per minute, concurrent requests."""
    budgets: Loss = Loss.REFUSE
    """Images per day, spend per month. `local` counts from the start of this worker."""


class SharedLimits(LimitStore, Membership, Protocol):
    """What the limiter needs of the store."""


class Limiter:
    """Admits and settles the requests of one worker, and keeps their leases alive.

    `fallback` is an in-process store that shadows what this worker was admitted; without one
    (the store itself being in-process) the store is taken to be always there.
    """

    def __init__(
        self,
        store: SharedLimits,
        *,
        worker: str,
        fallback: LimitStore | None = None,
        on_loss: OnLoss = OnLoss(),
        share: Share = Share(),
        lease_s: float = 30.0,
    ) -> None:
        self._store = store
        self._worker = worker
        self._fallback = fallback
        self._on_loss = on_loss
        self.lease_s = lease_s
        """How long a request of a killed worker holds what it reserved."""
        self._lease_ms = round(lease_s * 1000)
        self._live: dict[str, dict[str, Reservation]] = {}
        self._owed: deque[Settlement] = deque()
        self._upkeep: asyncio.Task[None] | None = None
        self._renewed = False
        self._shrinks_at = 0.0
        """Until then a smaller number of workers is not believed."""
        self.share = share
        """As given, then as last learnt from the store."""
        self.degraded = False
        """Whether decisions are made without the store."""
        self.has_reached = fallback is None
        """Whether the store has ever done what it was asked; until then it may be set up wrong."""
        self.dropped = 0
        """Settlements lost because too many were owed."""

    @property
    def owed(self) -> int:
        """Settlements that wait for the store to come back."""
        return len(self._owed)

    async def admit(self, tenant: str, limits: Limits, reservation: Reservation) -> Verdict:
        """Admit a request whole or refuse it whole; an admitted one must be settled.

        Never raises StoreUnavailable: the verdict's reason may be STORE_UNAVAILABLE.
        """
        ask = TakeRequest(tenant, limits, reservation, self._lease_ms)
        try:
            verdict = await self._store.take(ask)
        except StoreUnavailable as lost:
            self._lost(lost)
            verdict = await self._admit_alone(ask, in_doubt=lost.in_doubt)
        except asyncio.CancelledError:
            self._owe(_unused(ask))
            raise
        else:
            self.has_reached = True
            if verdict.allowed and self._fallback:
                await self._fallback.renew(tenant, [reservation], self._lease_ms)
        if verdict.allowed:
            self._live.setdefault(tenant, {})[reservation.id] = reservation
        return verdict

    async def settle(self, settlement: Settlement) -> Verdict | None:
        """End an admitted request; without the store this is kept and done later.

        Says where the limits stand then, or None if nobody knows. A cancellation on the way does
        not lose the settlement either.
        """
        self._forget(settlement)
        alone = await self._settle_alone(settlement)
        try:
            return await self._store.release(settlement)
        except StoreUnavailable as lost:
            self._lost(lost)
            self._owe(settlement)
            return alone
        except asyncio.CancelledError:
            self._owe(settlement)
            raise

    async def levels(self, tenant: str, limits: Limits) -> Verdict | None:
        """Where the limits stand, as far as anybody here knows."""
        try:
            return (await self._store.usage(tenant, limits)).levels
        except StoreUnavailable as lost:
            self._lost(lost)
            return await self._levels_alone(tenant, limits)

    def start(self) -> None:
        """Keep leases alive in the background, from within a running event loop."""
        self._upkeep = asyncio.create_task(self._keep_up(), name="limits-upkeep")

    async def aclose(self) -> None:
        """Stop, hand over what is owed if the store is there, and sign this worker off."""
        if self._upkeep:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        with contextlib.suppress(StoreUnavailable):
            await self._pay()
            await self._store.heartbeat(self._worker, 0)
        if self._owed:
            self._tell_lost()

    # -- without the store

    async def _admit_alone(self, ask: TakeRequest, *, in_doubt: bool) -> Verdict:
        verdict = await self._decide_alone(ask)
        if in_doubt and not verdict.allowed:
            # The store may yet carry out the take that it did not answer.
            self._owe(_unused(ask))
        return verdict

    async def _decide_alone(self, ask: TakeRequest) -> Verdict:
        limits = _limits_alone(ask.limits, self._on_loss, self.share)
        if limits is None or self._fallback is None:
            levels = await self._levels_alone(ask.tenant, ask.limits)
            return replace(
                levels or Verdict(allowed=False, by_store=False),
                allowed=False,
                reason=Reason.STORE_UNAVAILABLE,
                retry_after_ms=ALONE_RETRY_MS,
            )
        verdict = await self._fallback.take(replace(ask, limits=limits))
        verdict = replace(verdict, by_store=False)
        if not verdict.allowed and verdict.retry_after_ms is None:
            # Too large for the share, perhaps not for the limit.
            return replace(verdict, retry_after_ms=ALONE_RETRY_MS)
        return verdict

    async def _levels_alone(self, tenant: str, limits: Limits) -> Verdict | None:
        """Where this worker's share of the rates stands, if it enforces one."""
        if self._fallback is None or self._on_loss.rates is not Loss.LOCAL:
            return None
        share = Limits(*(_part(limit, Loss.LOCAL, self.share) for limit in _rates(limits)))
        return replace((await self._fallback.usage(tenant, share)).levels, by_store=False)

    async def _settle_alone(self, settlement: Settlement) -> Verdict | None:
        if self._fallback is None:
            return None
        limits = _limits_alone(settlement.limits, self._on_loss, self.share)
        verdict = await self._fallback.release(replace(settlement, limits=limits or Limits()))
        return None if limits is None else verdict

    def _lost(self, why: StoreUnavailable) -> None:
        if not self.degraded:
            log.warning("limits are enforced without the store: %s", why)
        self.degraded = True
        self._renewed = False

    def _found(self) -> None:
        """Of a cluster, every node that is asked for anything."""
        if self.degraded:
            log.warning("limits are enforced by the store again")
        self.degraded = False
        self.has_reached = True

    def _owe(self, settlement: Settlement) -> None:
        if len(self._owed) >= OWED_MAX:
            dropped = self._owed.popleft()
            self.dropped += 1
            log.error("settlement lost, too many are owed: %s", dropped)
        self._owed.append(settlement)

    # -- upkeep

    def _forget(self, settlement: Settlement) -> None:
        live = self._live.get(settlement.tenant, {})
        live.pop(settlement.reservation, None)
        if not live:
            self._live.pop(settlement.tenant, None)

    async def _keep_up(self) -> None:
        renew_s = self._lease_ms / 3000
        loop = asyncio.get_running_loop()
        renew_at = loop.time()
        while True:
            if loop.time() >= renew_at:
                renew_at = loop.time() + renew_s
                self._renewed = False
                await self._renew_shadow()
            failed: StoreUnavailable | None = None
            # Each by itself: of a cluster, one node may be away, and with it some of the tenants.
            for step in (self._pay, self._beat, self._renew):
                try:
                    await step()
                except StoreUnavailable as lost:
                    failed = lost
            if failed is not None:
                self._lost(failed)
            else:
                self._found()
            await asyncio.sleep(min(BEAT_S, renew_s))

    async def _beat(self) -> None:
        """Ask who else is there; often, as the shares are too large until a new one is known.

        A store that has come back without its data has heard of few: a smaller number is believed
        only once it has held for a lease.
        """
        share = await self._store.heartbeat(self._worker, self._lease_ms)
        now = asyncio.get_running_loop().time()
        if share.workers >= self.share.workers:
            self._shrinks_at = now + self._lease_ms / 1000
            self.share = share
        elif now >= self._shrinks_at:
            self.share = share

    async def _renew(self) -> None:
        if self._renewed:
            return
        failed: StoreUnavailable | None = None
        for tenant, live in list(self._live.items()):
            try:
                await self._renew_tenant(tenant, list(live.values()))
            except StoreUnavailable as lost:
                failed = lost
        if failed is not None:
            raise failed
        self._renewed = True

    async def _renew_tenant(self, tenant: str, reservations: list[Reservation]) -> None:
        for start in range(0, len(reservations), RENEW_AT_ONCE):
            # One that was settled meanwhile has left its trace and stays settled.
            part = reservations[start : start + RENEW_AT_ONCE]
            await self._store.renew(tenant, part, self._lease_ms)

    async def _renew_shadow(self) -> None:
        if self._fallback:
            for tenant, live in list(self._live.items()):
                await self._fallback.renew(tenant, list(live.values()), self._lease_ms)

    def _tell_lost(self) -> None:
        """What the store will never count; for whoever has to add it to the budgets by hand."""
        tenants: dict[str, dict[str, int]] = {}
        for settlement in self._owed:
            lost = tenants.setdefault(
                settlement.tenant, {"settlements": 0, "images": 0, "cost_micros": 0}
            )
            lost["settlements"] += 1
            lost["images"] += settlement.images
            lost["cost_micros"] += settlement.cost
        structlog.get_logger().error(
            "settlements_lost",
            cause="the store was away when this worker ended",
            settlements=len(self._owed),
            images=sum(lost["images"] for lost in tenants.values()),
            cost_micros=sum(lost["cost_micros"] for lost in tenants.values()),
            tenants=tenants,
        )

    async def _pay(self) -> None:
        failures, failed = 0, StoreUnavailable("")
        for _ in range(len(self._owed)):
            if not self._owed or failures == FAILURES_AT_ONCE:
                break
            settlement = self._owed.popleft()
            try:
                await self._store.release(settlement)
            except StoreUnavailable as lost:
                # To the end: the next may be one of a node that is there.
                self._owed.append(settlement)
                failures, failed = failures + 1, lost
            except BaseException:
                self._owed.appendleft(settlement)
                raise
        if failures:
            raise failed


def _unused(ask: TakeRequest) -> Settlement:
    return Settlement(ask.tenant, ask.reservation.id, ask.reservation.model, images=0, cost=0)


def _limits_alone(limits: Limits, on_loss: OnLoss, share: Share) -> Limits | None:
    """What this worker enforces without the store; None refuses whatever is asked."""
    rates = _rates(limits)
    budgets = (limits.images_per_day, limits.spend_per_month)
    if _refuses(on_loss.rates, rates) or _refuses(on_loss.budgets, budgets):
        return None
    return Limits(
        *(_part(limit, on_loss.rates, share) for limit in rates),
        *(_part(limit, on_loss.budgets, share) for limit in budgets),
    )


def _rates(limits: Limits) -> tuple[int | None, ...]:
    """In the order of `Limits`, before the budgets."""
    return limits.requests_per_minute, limits.images_per_minute, limits.concurrent_requests


def _refuses(policy: Loss, limits: tuple[int | None, ...]) -> bool:
    return policy is Loss.REFUSE and any(limit is not None for limit in limits)


def _part(limit: int | None, policy: Loss, share: Share) -> int | None:
    return None if limit is None or policy is Loss.ALLOW else share.of(limit)
