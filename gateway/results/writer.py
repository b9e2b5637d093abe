"""Writes what becomes of generations and requests: here at once, to the store as soon as it can be.

What the store has not been told while it is away waits in a backlog.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.results.failover import FailoverStore
from gateway.results.followers import GenerationKey, Waiters, tell
from gateway.results.holdings import NOTHING, Holdings, LedGeneration
from gateway.store.availability import StoreUnavailable
from gateway.store.generations import (
    Completion,
    Failure,
    FencingResult,
    GenerationStatus,
    Leadership,
)
from gateway.store.limits import Settlement, Verdict
from gateway.store.requests import End, Leave

RECENT_S = 5.0
"""Recent ends and leavings are repeated once after a reconnect: a replica may have lost them."""
RECENT_MAX = 10_000
BACKLOG_MAX = 10_000
"""Ends and leavings kept, some kilobytes each."""

log = structlog.get_logger()


class LedgerWriter:
    """Writes parts, ends and leaves, even without the store. `release` takes an end's followers."""

    def __init__(
        self,
        stores: FailoverStore,
        holdings: Holdings,
        release: Callable[[GenerationKey, Waiters], None],
        *,
        lead_ms: int,
    ) -> None:
        self._stores = stores
        self._holdings = holdings
        self._release = release
        self._lead_ms = lead_ms
        self._recent: deque[tuple[float, PendingWrite]] = deque(maxlen=RECENT_MAX)
        """What is repeated after a reconnect, and when the store got it."""
        self.backlog = Backlog()

    async def progress(
        self, leadership: Leadership, index: int, urls: Sequence[str], paid: Settlement | None
    ) -> None:
        """Keep what a call brought; without `paid` only here, since the end follows at once."""
        generation = self._holdings.of(leadership)
        if generation is None:
            return
        generation.parts[index] = tuple(urls)
        if paid is None:
            return
        generation.unsaved |= {index}
        generation.paid = paid
        await self._stores.mirror(lambda store: store.progress(leadership, index, urls, paid))
        if not self._stores.is_lost(leadership.scope):
            try:
                await self.save(generation)
            except StoreUnavailable as lost:
                self._stores.lost(leadership.scope, lost)

    async def end(self, end: End, status: GenerationStatus | None) -> Verdict | None:
        """Without a status a follower takes over. Returns where the limits stand, if known."""
        generation = self._holdings.of(end.leadership)
        if generation is not None:
            self.drop(generation, status)
            if isinstance(end.outcome, Failure):
                end = replace(end, outcome=replace(end.outcome, parts=generation.parts))
        if end.leaves:
            self._holdings.release(end.settlement)
        else:
            self._holdings.settle(end.settlement)
        alone = await self._stores.mirror(lambda store: store.end(uncached(end)))
        now = asyncio.get_running_loop().time()
        pending = PendingWrite(end.leadership.scope, end, now, generation)
        verdict = await self._write_or_keep(pending)
        if verdict is None:
            return None if alone is None else replace(alone[1], by_store=False)
        return verdict

    def drop(self, generation: LedGeneration, status: GenerationStatus | None) -> None:
        self._holdings.forget(generation)
        if status is None:
            self._release(generation.key, generation.waiters)
        else:
            tell(generation.waiters, status)

    async def leave(self, leave: Leave) -> None:
        self._holdings.release(leave.settlement)
        await self._stores.mirror(lambda store: store.leave(leave))
        await self._write_or_keep(
            PendingWrite(leave.scope, leave, asyncio.get_running_loop().time())
        )

    def write_later(self, leave: Leave) -> None:
        self.backlog.add(PendingWrite(leave.scope, leave, asyncio.get_running_loop().time()))

    def repeat_recent(self) -> None:
        """After a reconnect: the new server may lack what the former one answered just before."""
        self.backlog.put_first([pending for _, pending in self._recent])
        self._recent.clear()

    def forget_old(self, now: float) -> None:
        """Drop what every replica has by now; while the store is away, none is known to."""
        if self._stores.degraded:
            return
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()

    async def _write_or_keep(self, pending: PendingWrite) -> Verdict | None:
        if self._stores.is_lost(pending.scope):
            self.backlog.add(pending)
            return None
        try:
            return await self.write(pending)
        except StoreUnavailable as lost:
            self._stores.lost(pending.scope, lost)
            self.backlog.add(pending)
            return None
        except asyncio.CancelledError:
            self.backlog.add(unanswered(pending))
            raise

    async def write(self, pending: PendingWrite) -> Verdict:
        """Raises StoreUnavailable."""
        if isinstance(pending.what, Leave):
            verdict = await self._stores.store.leave(pending.what)
            if pending.what.generation is None:
                return verdict
        else:
            verdict = await self._write_end(pending, pending.what)
        self._recent.append((asyncio.get_running_loop().time(), pending))
        return verdict

    async def _write_end(self, pending: PendingWrite, end: End) -> Verdict:
        store = self._stores.store
        end = older(end, asyncio.get_running_loop().time() - pending.at)
        fencing, verdict = await store.end(end)
        generation = pending.generation
        if generation is None or fencing is FencingResult.KEPT:
            return verdict
        if fencing is FencingResult.MISSING:
            await self.restore(generation)
            _, verdict = await store.end(end)
        else:
            for index, urls in generation.parts.items():
                await store.progress(end.leadership, index, urls, end.settlement)
        return verdict

    async def restore(self, generation: LedGeneration) -> None:
        """Put back what the store has lost. Raises StoreUnavailable."""
        generation.unsaved = NOTHING
        parts = dict(generation.parts)
        try:
            await self._stores.store.restore(
                generation.leadership, generation.entry, self._lead_ms, parts
            )
        except StoreUnavailable:
            generation.unsaved |= set(parts)
            raise
        generation.is_stored = True

    async def save(self, generation: LedGeneration) -> None:
        """Send the store the parts that it lacks. Raises StoreUnavailable."""
        while generation.unsaved:
            index = min(generation.unsaved)
            generation.unsaved -= {index}  # another call's part may be saved meanwhile
            try:
                fencing = await self._stores.store.progress(
                    generation.leadership, index, generation.parts[index], generation.paid
                )
            except BaseException:
                generation.unsaved |= {index}
                raise
            if fencing is FencingResult.MISSING:
                await self.restore(generation)


def older(end: End, age_s: float) -> End:
    """The end, as written `age_s` later."""
    age_ms = round(age_s * 1000)
    outcome = end.outcome
    if isinstance(outcome, Failure) or age_ms <= 0:
        return end
    later = replace(
        outcome,
        life_ms=outcome.life_ms - age_ms,
        keep_ms=outcome.keep_ms - age_ms,
        cache_ms=max(0, outcome.cache_ms - age_ms),
    )
    return replace(end, outcome=later)


def uncached(end: End) -> End:
    """For the fallback: a purge does not reach it, so it must not serve as a cache."""
    if isinstance(end.outcome, Completion):
        return replace(end, outcome=replace(end.outcome, cache_ms=0))
    return end


def unanswered(pending: PendingWrite) -> PendingWrite:
    """What remains to be written where the request itself was given up: it leaves by `leave`."""
    if isinstance(pending.what, End) and pending.what.leaves:
        return replace(pending, what=replace(pending.what, leaves=False))
    return pending


class PendingWrite(Struct, frozen=True):
    """Something to write to the store, and when it happened."""

    scope: str
    what: End | Leave
    at: float
    """In the event loop's seconds."""
    generation: LedGeneration | None = None
    """The generation that ended, to restore it where the store has lost it."""


class Backlog:
    """In order per scope; bounded: what does not fit is logged and counted."""

    def __init__(self, most: int = BACKLOG_MAX) -> None:
        self._most = most
        self._pending: dict[str, deque[PendingWrite]] = {}
        self.size = 0
        self.dropped = 0

    def scopes(self) -> set[str]:
        return set(self._pending)

    def all(self) -> list[PendingWrite]:
        return [pending for waiting in self._pending.values() for pending in waiting]

    def has(self, scope: str) -> bool:
        return scope in self._pending

    def add(self, pending: PendingWrite) -> None:
        """The longest backlog's oldest makes room."""
        if self.size >= self._most:
            longest = max(self._pending, key=lambda scope: len(self._pending[scope]))
            dropped = self._take(longest)
            self.dropped += 1
            settlement = dropped.what.settlement
            log.error(
                "settlement_lost",
                cause="the backlog is full",
                tenant=settlement.tenant,
                request=settlement.reservation,
                images=settlement.images,
                cost_micros=settlement.cost,
            )
        self._pending.setdefault(pending.scope, deque()).append(pending)
        self.size += 1

    def put_first(self, earlier: Sequence[PendingWrite]) -> None:
        """Add what happened before everything that waits; as much as fits, the latest of it."""
        room = max(0, self._most - self.size)
        for pending in reversed(earlier[-room:] if room else []):
            self._pending.setdefault(pending.scope, deque()).appendleft(pending)
            self.size += 1

    async def flush(self, scope: str, write: Callable[[PendingWrite], Awaitable[object]]) -> None:
        """Tell the store everything of a scope, the oldest first; what `write` raises ends it."""
        while waiting := self._pending.get(scope):
            pending = waiting[0]
            await write(pending)
            # More may have come meanwhile, and the oldest of them dropped.
            if self._pending.get(scope) is waiting and waiting and waiting[0] is pending:
                self._take(scope)

    def log_lost(self) -> None:
        """Log what the store will never count: somebody has to add it to the budgets by hand."""
        pending = self.all()
        results = sum(isinstance(one.what, End) for one in pending)
        # A request's end and its leaving settle the same: what it has used, not more of it.
        settled = {one.what.settlement.reservation: one.what.settlement for one in pending}
        tenants: dict[str, dict[str, int]] = {}
        for settlement in settled.values():
            if not settlement.images:
                continue
            lost = tenants.setdefault(
                settlement.tenant, {"settlements": 0, "images": 0, "cost_micros": 0}
            )
            lost["settlements"] += 1
            lost["images"] += settlement.images
            lost["cost_micros"] += settlement.cost
        if not tenants and not results:
            return  # places alone, which end by themselves
        log.error(
            "settlements_lost",
            cause="the store was away when this worker ended",
            settlements=sum(lost["settlements"] for lost in tenants.values()),
            images=sum(lost["images"] for lost in tenants.values()),
            cost_micros=sum(lost["cost_micros"] for lost in tenants.values()),
            results=results,
            tenants=tenants,
        )

    def _take(self, scope: str) -> PendingWrite:
        waiting = self._pending[scope]
        pending = waiting.popleft()
        if not waiting:
            del self._pending[scope]
        self.size -= 1
        return pending
