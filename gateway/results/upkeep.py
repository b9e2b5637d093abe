"""Keeps this worker's leases alive, and brings a store up to date that was away or lost data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from gateway.results.cache_policy import scope_of
from gateway.results.failover import FailoverStore, LedgerStore
from gateway.results.holdings import Holdings, LeaseTimes, LedGeneration
from gateway.results.writer import LedgerWriter
from gateway.store.availability import StoreUnavailable
from gateway.store.generations import FencingResult
from gateway.tenants.local_limits import LocalLimits

RENEW_AT_ONCE = 500
"""Leases per renewal: short calls."""
PROBE_S = 0.25
"""How often a lost store is tried again."""
AT_ONCE = 20
"""Scopes brought up to date side by side; if all of them fail, so would the rest."""
WORKERS = "workers"
"""In place of a scope, the list of workers: by it an idle worker sees that the store is lost."""
NOBODY = "-"
"""No generation's id: polls a store to which nothing is to be written."""

log = structlog.get_logger()


class Upkeep:
    def __init__(
        self,
        stores: FailoverStore,
        holdings: Holdings,
        writer: LedgerWriter,
        local: LocalLimits,
        *,
        worker: str,
        times: LeaseTimes,
    ) -> None:
        self._stores = stores
        self._holdings = holdings
        self._writer = writer
        self._local = local
        self._worker = worker
        self._lead_ms = times.lead_ms
        self._lease_ms = times.lease_ms
        self._beat_s = times.beat_s
        self._renewed: set[str] = set()
        """Scopes whose reservations were renewed in this round."""
        self._reconnects = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        lead_at = renew_at = beat_at = loop.time()
        while True:
            now = loop.time()
            self._forget(now)
            if now >= renew_at:
                renew_at = now + self._lease_ms / 3000
                self._renewed.clear()
                await self._stores.mirror(self._renew_tenants)
            is_due = now >= lead_at
            if is_due:
                lead_at = now + self._lead_ms / 3000
                await self._stores.mirror(self._renew_scopes)
            if now >= beat_at:
                beat_at = now + self._beat_s
                await self._beat(now)
            await self.bring_up(is_due=is_due)
            is_anxious = self._stores.degraded or self._writer.backlog.size
            next_at = min(lead_at, renew_at, beat_at)
            await self._rest(PROBE_S if is_anxious else next_at - loop.time())

    async def bring_up(self, *, is_due: bool) -> None:
        """Tell each scope alone what it has missed: one node of a cluster may be away."""
        there = self._writer.backlog.scopes() | self._unrenewed()
        if is_due:
            there |= self._holdings.scopes()
        await self._try_all([one for one in there if not self._stores.is_lost(one)])
        # First those that somebody else could take for dead.
        led = self._holdings.scopes()
        lost = [scope for scope in self._stores.lost_scopes if scope != WORKERS]
        lost.sort(key=lambda scope: scope not in led)
        await self._try_all(lost, at_least_one=True)

    def _unrenewed(self) -> set[str]:
        return {scope_of(tenant) for tenant in self._holdings.tenants()} - self._renewed

    def _forget(self, now: float) -> None:
        self._writer.forget_old(now)
        reconnects = self._stores.store.reconnects
        if reconnects != self._reconnects:
            self._reconnects = reconnects
            self._renewed.clear()
            self._writer.repeat_recent()
        for generation in self._holdings.generations():
            if generation.until <= now:
                log.error("generation_never_ended", generation=generation.leadership.id)
                self._writer.drop(generation, None)

    async def _beat(self, now: float) -> None:
        try:
            share = await self._stores.store.heartbeat(self._worker, self._lease_ms)
        except StoreUnavailable as lost:
            self._stores.lost(WORKERS, lost)
        else:
            self._local.learn(share, now, self._lease_ms / 1000)
            self._stores.found(WORKERS)

    async def _try_all(self, scopes: Sequence[str], *, at_least_one: bool = False) -> None:
        for start in range(0, len(scopes), AT_ONCE):
            part = scopes[start : start + AT_ONCE]
            if not any(await asyncio.gather(*map(self._try, part))) and at_least_one:
                break

    async def _try(self, scope: str) -> bool:
        """Whether the store is up to date in a scope now."""
        try:
            await self._catch_up(scope)
        except StoreUnavailable as lost:
            self._stores.lost(scope, lost)
        except Exception:
            log.exception("leases_not_renewed", scope=scope)
        else:
            self._stores.found(scope)
            return True
        return False

    async def _rest(self, seconds: float) -> None:
        self._stores.changed.clear()
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._stores.changed.wait()
                await asyncio.sleep(PROBE_S)
        except TimeoutError:
            return

    async def _catch_up(self, scope: str) -> None:
        writer = self._writer
        # Before somebody else takes what has ended for dead.
        await writer.backlog.flush(scope, writer.write)
        is_due = scope in self._unrenewed()
        if is_due:
            await self._renew_tenants(self._stores.store, scope)
            self._renewed.add(scope)
        if scope in self._holdings.scopes():
            await self._renew_and_restore(scope)
        elif not is_due:
            await self._stores.store.poll(scope, [NOBODY])
        while writer.backlog.has(scope) or self._unstored(scope):
            await writer.backlog.flush(scope, writer.write)
            for generation in self._unstored(scope):
                await writer.restore(generation)

    def _unstored(self, scope: str) -> list[LedGeneration]:
        return [one for one in self._holdings.generations(scope) if not one.is_stored]

    async def _renew_tenants(self, store: LedgerStore, scope: str | None = None) -> None:
        """Renew the tenants that are at home in a scope, or all."""
        for tenant in self._holdings.tenants():
            if scope is None or scope_of(tenant) == scope:
                reservations = self._holdings.reservations(tenant)
                for start in range(0, len(reservations), RENEW_AT_ONCE):
                    # One that has left meanwhile has left its trace there.
                    part = reservations[start : start + RENEW_AT_ONCE]
                    await store.renew(tenant, part, self._lease_ms)

    async def _renew_scopes(self, store: LedgerStore) -> None:
        for scope in self._holdings.scopes():
            await self._renew(store, scope)

    async def _renew_and_restore(self, scope: str) -> None:
        for generation, fencing in await self._renew(self._stores.store, scope):
            if fencing is FencingResult.MISSING:
                await self._writer.restore(generation)
            elif fencing is FencingResult.KEPT:
                await self._writer.save(generation)
            elif not generation.is_fenced:
                generation.is_fenced = True
                log.warning("leadership_lost", generation=generation.leadership.id)

    async def _renew(
        self, store: LedgerStore, scope: str
    ) -> list[tuple[LedGeneration, FencingResult]]:
        renewed: list[tuple[LedGeneration, FencingResult]] = []
        generations = self._holdings.generations(scope)
        for start in range(0, len(generations), RENEW_AT_ONCE):
            part = generations[start : start + RENEW_AT_ONCE]
            leaderships = [generation.leadership for generation in part]
            results = await store.renew_leaderships(leaderships, self._lead_ms)
            renewed += zip(part, results, strict=True)
        return [one for one in renewed if self._holdings.of(one[0].leadership) is one[0]]
