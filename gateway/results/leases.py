"""The ends of what this worker holds, for waiters here at once, for the store when it can be."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from msgspec.structs import replace

from gateway.results.backlog import Backlog, Owed
from gateway.results.failover import FailoverStore
from gateway.results.followers import Key, Waiters, tell
from gateway.results.holdings import NOTHING, Generation, Holdings
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
"""Recent ends are repeated once after a reconnect: a replica may have lost them."""
RECENT_MAX = 5_000

log = structlog.get_logger()


class LeaseKeeper:
    """Writes parts, ends and leaves, even without the store. `release` takes an end's followers."""

    def __init__(
        self,
        stores: FailoverStore,
        holdings: Holdings,
        release: Callable[[Key, Waiters], None],
        *,
        lead_ms: int,
    ) -> None:
        self._stores = stores
        self._holdings = holdings
        self._release = release
        self._lead_ms = lead_ms
        self._recent: deque[tuple[float, Owed]] = deque(maxlen=RECENT_MAX)
        """Ends, and when the store got them."""
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
        self._holdings.settle(end.settlement)
        alone = await self._stores.mirror(lambda store: store.end(uncached(end)))
        now = asyncio.get_running_loop().time()
        owed = Owed(end.leadership.scope, end, now, generation)
        verdict = await self._write_or_owe(owed)
        if verdict is None:
            return None if alone is None else replace(alone[1], by_store=False)
        return verdict

    def drop(self, generation: Generation, status: GenerationStatus | None) -> None:
        self._holdings.forget(generation)
        if status is None:
            self._release(generation.key, generation.waiters)
        else:
            tell(generation.waiters, status)

    async def leave(self, leave: Leave) -> None:
        self._holdings.release(leave.settlement)
        await self._stores.mirror(lambda store: store.leave(leave))
        await self._write_or_owe(Owed(leave.scope, leave, asyncio.get_running_loop().time()))

    def owe(self, leave: Leave) -> None:
        self.backlog.add(Owed(leave.scope, leave, asyncio.get_running_loop().time()))

    def repeat_recent(self) -> None:
        """After a reconnect: the new server may lack what the former one answered just before."""
        for _, owed in self._recent:
            self.backlog.add(owed)
        self._recent.clear()

    def forget_old(self, now: float) -> None:
        """Drop what every replica has by now."""
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()

    async def _write_or_owe(self, owed: Owed) -> Verdict | None:
        if self._stores.is_lost(owed.scope):
            self.backlog.add(owed)
            return None
        try:
            return await self.write(owed)
        except StoreUnavailable as lost:
            self._stores.lost(owed.scope, lost)
            self.backlog.add(owed)
            return None
        except asyncio.CancelledError:
            self.backlog.add(owed)
            raise

    async def write(self, owed: Owed) -> Verdict:
        """Raises StoreUnavailable."""
        if isinstance(owed.what, Leave):
            return await self._stores.store.leave(owed.what)
        verdict = await self._write_end(owed, owed.what)
        self._recent.append((asyncio.get_running_loop().time(), owed))
        return verdict

    async def _write_end(self, owed: Owed, end: End) -> Verdict:
        store = self._stores.store
        end = older(end, asyncio.get_running_loop().time() - owed.at)
        standing, verdict = await store.end(end)
        generation = owed.generation
        if generation is None or standing is FencingResult.KEPT:
            return verdict
        if standing is FencingResult.MISSING:
            await self.restore(generation)
            _, verdict = await store.end(end)
        else:
            for index, urls in generation.parts.items():
                await store.progress(end.leadership, index, urls, end.settlement)
        return verdict

    async def restore(self, generation: Generation) -> None:
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

    async def save(self, generation: Generation) -> None:
        """Send the store the parts that it lacks. Raises StoreUnavailable."""
        while generation.unsaved:
            index = min(generation.unsaved)
            urls = generation.parts[index]
            standing = await self._stores.store.progress(
                generation.leadership, index, urls, generation.paid
            )
            if generation.parts[index] is urls:
                generation.unsaved -= {index}
            if standing is FencingResult.MISSING:
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
