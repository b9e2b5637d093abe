"""The store, or while it is away the worker's own memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import structlog
from msgspec.structs import replace

from gateway.observability.context import ClientOutcome
from gateway.results.cache_policy import scope_of
from gateway.store.availability import Membership, StoreUnavailable
from gateway.store.generations import GenerationNotes, GenerationStore, Lead, known_images
from gateway.store.limits import Limits, LimitStore, Reason, Settlement, Verdict
from gateway.store.requests import Entered, EnterRequest, Leave, RequestStore
from gateway.tenants.local_limits import LocalLimits

T = TypeVar("T")

ALONE_RETRY_MS = 1_000
"""Suggested wait when the store's absence refuses: it is looked for four times a second."""

log = structlog.get_logger()


class LedgerStore(RequestStore, GenerationStore, GenerationNotes, LimitStore, Membership, Protocol):
    """What the ledger needs of the store."""


class FailoverStore:
    """Chooses the store per scope: one node of a cluster may be away.

    A lost store is not asked before `found`. `fallback` mirrors what this worker was admitted and
    leads; without one the store is in-process and never lost.
    """

    def __init__(
        self, store: LedgerStore, fallback: LedgerStore | None, local: LocalLimits
    ) -> None:
        self.store = store
        self._fallback = fallback
        self._local = local
        self._lost: dict[str, None] = {}
        self.changed = asyncio.Event()
        """Set when a scope is lost."""
        self.has_reached = fallback is None
        """Whether the store has ever answered; until then it may be set up wrong."""

    @property
    def degraded(self) -> bool:
        return bool(self._lost)

    @property
    def lost_scopes(self) -> list[str]:
        """Least recently tried first."""
        return list(self._lost)

    def is_lost(self, scope: str) -> bool:
        return scope in self._lost

    async def enter(self, request: EnterRequest) -> tuple[Entered[bytes], bool]:
        """The decision, and whether a silent store may have admitted the request all the same.

        Raises StoreUnavailable without a fallback.
        """
        is_in_doubt = False
        homes = {request.entry.scope, scope_of(request.take.tenant)}
        if self._fallback is None:
            return await self.store.enter(request), False
        if homes.isdisjoint(self._lost):
            try:
                entered = await self.store.enter(request)
            except StoreUnavailable as lost:
                is_in_doubt = lost.in_doubt
                for home in homes:
                    self.lost(home, lost)
            else:
                self.has_reached = True
                return entered, False
        return await self._enter_alone(self._fallback, request), is_in_doubt

    async def _enter_alone(self, fallback: LedgerStore, request: EnterRequest) -> Entered[bytes]:
        take = request.take
        limits = self._local.enforced(take.limits)
        if limits is None:
            verdict = await self.levels_alone(take.tenant, take.limits) or Verdict(allowed=False)
            refused = replace(
                verdict,
                allowed=False,
                by_store=False,
                reason=Reason.STORE_UNAVAILABLE,
                retry_after_ms=ALONE_RETRY_MS,
            )
            return Entered(refused, None)
        entered = await fallback.enter(replace(request, take=replace(take, limits=limits)))
        verdict = replace(entered.verdict, by_store=False)
        if not verdict.allowed and verdict.retry_after_ms is None:
            # Too large for the share, perhaps not for the limit.
            verdict = replace(verdict, retry_after_ms=ALONE_RETRY_MS)
        return Entered(verdict, entered.place, entered.has_left)

    async def mirror_entry(self, request: EnterRequest, entered: Entered[bytes]) -> None:
        take, place = request.take, entered.place
        if self._fallback is None or place is None or not entered.verdict.by_store:
            return
        if entered.has_left:
            await self._fallback.leave(unused(request))
            return
        await self._fallback.renew(
            take.tenant, [take.reservation.less(known_images(place))], take.lease_ms
        )
        if isinstance(place, Lead):
            await self._fallback.restore(
                place.leadership, request.entry, request.lead_ms, place.parts
            )

    async def levels(self, tenant: str, limits: Limits) -> Verdict | None:
        """Where the limits stand, as far as this worker knows."""
        home = scope_of(tenant)
        if home not in self._lost:
            try:
                return await self.store.levels(tenant, limits)
            except StoreUnavailable as lost:
                self.lost(home, lost)
        return await self.levels_alone(tenant, limits)

    async def levels_alone(self, tenant: str, limits: Limits) -> Verdict | None:
        """Where this worker's share of the rates stands, if it enforces one."""
        share = self._local.shown(limits)
        if self._fallback is None or share is None:
            return None
        return replace(await self._fallback.levels(tenant, share), by_store=False)

    async def ask(self, scope: str, operation: Callable[[LedgerStore], Awaitable[T]]) -> T:
        """The store's answer, or the fallback's. Raises StoreUnavailable without one."""
        if scope not in self._lost or self._fallback is None:
            try:
                return await operation(self.store)
            except StoreUnavailable as lost:
                if self._fallback is None:
                    raise
                self.lost(scope, lost)
        return await operation(self._fallback)

    async def mirror(self, operation: Callable[[LedgerStore], Awaitable[T]]) -> T | None:
        return None if self._fallback is None else await operation(self._fallback)

    def lost(self, scope: str, why: StoreUnavailable) -> None:
        if not self._lost:
            log.warning("store_lost", cause=str(why))
        if scope not in self._lost:
            self.changed.set()
        self._lost.pop(scope, None)
        self._lost[scope] = None  # at the end

    def found(self, scope: str) -> None:
        """The store answers, and knows everything that this worker holds there."""
        self.has_reached = True
        if scope in self._lost:
            del self._lost[scope]
            if not self._lost:
                log.warning("store_found")


def unused(request: EnterRequest) -> Leave:
    """The leaving of a request that did nothing."""
    take = request.take
    settlement = Settlement(
        take.tenant, take.reservation.id, take.reservation.family, images=0, cost=0
    )
    return Leave(
        settlement=settlement,
        outcome=ClientOutcome.ANSWERED,
        scope=request.entry.scope,
        retry_key=request.entry.retry_key,
    )
