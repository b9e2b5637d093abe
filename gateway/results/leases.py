"""The generations that this worker makes, from `begin` to their last word in the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace

from gateway.results.failover import Access, LedgerStore
from gateway.results.followers import Key, Waiters, tell
from gateway.store.base import StoreUnavailable
from gateway.store.generations import Claim, Ending, Entry, Failure, Parts, Sight, Standing

OWED_MAX = 10_000
"""Endings kept while the store is away; some kilobytes each."""
RENEW_AT_ONCE = 500
"""Leaderships per renewal, to keep each call to the store short."""
PROBE_S = 0.25
"""How often a lost store is tried again."""
AT_ONCE = 20
"""Scopes that are brought up to date side by side; where all of them fail, so would the rest."""
NOBODY = "-"
"""No generation's id: by looking for it a store is tried that has nothing to be told."""

NOTHING: frozenset[int] = frozenset()
"""One for all: an empty set is 0.2 KiB."""

log = logging.getLogger(__name__)


class Flight:
    """A generation that this worker leads."""

    __slots__ = (
        "claim",
        "entry",
        "is_fenced",
        "is_stored",
        "parts",
        "unsaved",
        "until",
        "waiters",
    )

    def __init__(self, entry: Entry, claim: Claim, parts: Parts, until: float) -> None:
        self.entry = entry
        self.claim = claim
        self.parts = dict(parts)
        self.until = until
        self.waiters: Waiters = {}
        self.unsaved = NOTHING
        """Parts that the store has not been told."""
        self.is_stored = False
        """Whether the store has ever known of it."""
        self.is_fenced = False

    @property
    def key(self) -> Key:
        return self.claim.scope, self.claim.id


class Owed(Struct, frozen=True):
    """An ending that the store has not been told, and when it was."""

    flight: Flight
    ending: Ending | Failure
    at: float


class Flights:
    """Keeps leaderships alive, parts safe and endings told, whatever the store is up to.

    `release` is given those who wait for a generation that this worker leads no longer.
    """

    def __init__(
        self,
        access: Access,
        release: Callable[[Key, Waiters], None],
        *,
        lease_s: float,
        longest_s: float,
    ) -> None:
        self._access = access
        self._release = release
        self._lease_ms = round(lease_s * 1000)
        self._longest_s = longest_s
        self._live: dict[str, dict[str, Flight]] = {}
        """By scope and id."""
        self._owed: dict[str, deque[Owed]] = {}
        """By scope."""
        self.dropped = 0

    @property
    def live(self) -> int:
        return sum(len(flights) for flights in self._live.values())

    @property
    def owed(self) -> int:
        return sum(len(owed) for owed in self._owed.values())

    def owed_by_scope(self) -> dict[str, int]:
        return {scope: len(owed) for scope, owed in self._owed.items()}

    def find(self, key: Key) -> Flight | None:
        scope, id_ = key
        return self._live.get(scope, {}).get(id_)

    async def open(self, entry: Entry, claim: Claim, parts: Parts, waiters: Waiters) -> None:
        """Lead from now on; `waiters` wait here for what they waited for elsewhere."""
        until = asyncio.get_running_loop().time() + self._longest_s
        flight = Flight(entry, claim, parts, until)
        flight.waiters = waiters
        flight.is_stored = not self._access.is_lost(claim.scope)
        self._live.setdefault(claim.scope, {})[claim.id] = flight
        await self._access.shadow(
            lambda store: store.restore(claim, entry, self._lease_ms, flight.parts)
        )

    async def keep_part(self, claim: Claim, index: int, urls: Sequence[str]) -> None:
        """Keep what a call has brought: here at once, and in the store as soon as it can be."""
        flight = self._of(claim)
        if flight is None:
            return
        flight.parts[index] = tuple(urls)
        flight.unsaved |= {index}
        await self._access.shadow(lambda store: store.progress(claim, index, urls))
        if not self._access.is_lost(claim.scope):
            try:
                await self._save(flight)
            except StoreUnavailable as lost:
                self._access.lost(claim.scope, lost)

    async def end(self, claim: Claim, ending: Ending | Failure, sight: Sight | None) -> None:
        """Tell everybody: here at once, then the store. Without a sight one of them takes over."""
        flight = self._of(claim)
        if flight is None:
            return
        self._forget(flight)
        if sight is None:
            self._release(flight.key, flight.waiters)
        else:
            tell(flight.waiters, sight)
        if isinstance(ending, Failure):
            ending = replace(ending, parts=flight.parts)
        owed = Owed(flight, ending, asyncio.get_running_loop().time())
        await self._access.shadow(lambda store: write(store, claim, uncached(owed.ending)))
        await self._settle_or_owe(owed)

    async def abandon(self, claim: Claim) -> bool:
        """Give up unless somebody waits, here or elsewhere."""
        flight = self._of(claim)
        if flight is None:
            return True
        adoption = flight.entry.adoption
        if any(not waiter.done() for waiter in flight.waiters):
            return False
        scope = claim.scope
        was_lost = self._access.is_lost(scope)
        if not await self._access.ask(scope, lambda store: store.abandon(claim, adoption)):
            return False
        if self._of(claim) is flight:
            self._forget(flight)
            self._release(flight.key, flight.waiters)
            await self._access.shadow(lambda store: store.abandon(claim, adoption))
        if was_lost or self._access.is_lost(scope):
            self._owe(Owed(flight, Failure(flight.parts, None, adoption, answered=False), 0.0))
        return True

    # -- upkeep

    async def keep_up(self) -> None:
        """Tell the store what it has missed, and renew every leadership."""
        beat_s = self._lease_ms / 3000
        loop = asyncio.get_running_loop()
        renew_at = loop.time()
        while True:
            self._forget_forgotten(loop.time())
            is_due = loop.time() >= renew_at
            if is_due:
                renew_at = loop.time() + beat_s
                await self._access.shadow(self._renew_all)
            there = self._live.keys() | self._owed.keys() if is_due else self._owed.keys()
            await self._bring_up([one for one in there if not self._access.is_lost(one)])
            # First those that somebody else could take for dead.
            lost = sorted(self._access.lost_scopes, key=lambda scope: scope not in self._live)
            await self._bring_up(lost, at_least_one=True)
            is_anxious = self._access.degraded or self._owed
            await self._rest(PROBE_S if is_anxious else renew_at - loop.time())

    async def _bring_up(self, scopes: Sequence[str], *, at_least_one: bool = False) -> None:
        """Each by itself, as one node of a cluster may be away; perhaps only while some succeed."""
        for start in range(0, len(scopes), AT_ONCE):
            part = scopes[start : start + AT_ONCE]
            if not any(await asyncio.gather(*map(self._try, part))) and at_least_one:
                break

    async def _try(self, scope: str) -> bool:
        """Whether the store knows everything of a scope now."""
        try:
            await self._catch_up(scope)
        except StoreUnavailable as lost:
            self._access.lost(scope, lost)
        except Exception:
            log.exception("leaderships could not be renewed")
        else:
            self._access.found(scope)
            return True
        return False

    async def pay(self) -> None:
        """Tell the store the endings that it has missed, as far as it is there."""
        for scope in list(self._owed):
            with contextlib.suppress(StoreUnavailable):
                await self._pay(scope)

    async def _pay(self, scope: str) -> None:
        """Raises StoreUnavailable."""
        while waiting := self._owed.get(scope):
            owed = waiting[0]
            await self._settle(owed)
            # More may have been owed meanwhile, and the oldest of them dropped.
            if waiting and waiting[0] is owed:
                waiting.popleft()
            if not waiting and self._owed.get(scope) is waiting:
                del self._owed[scope]

    async def step_down(self) -> None:
        """This worker ends: whoever waits elsewhere need not wait for the leases."""
        for flight in list(self._flights()):
            failure = Failure(flight.parts, None, flight.entry.adoption, answered=False)
            await self.end(flight.claim, failure, None)

    async def _rest(self, seconds: float) -> None:
        """Sleep, or until the store is lost."""
        self._access.changed.clear()
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._access.changed.wait()
                await asyncio.sleep(PROBE_S)
        except TimeoutError:
            return

    async def _catch_up(self, scope: str) -> None:
        """Bring the store up to date. Raises StoreUnavailable."""
        await self._pay(scope)  # before somebody else takes what has ended for dead
        if scope in self._live:
            await self._renew_and_restore(scope)
        else:
            await self._access.store.look(scope, [NOBODY])
        while scope in self._owed or self._unstored(scope):
            await self._pay(scope)
            for flight in self._unstored(scope):
                await self._restore(flight)

    def _unstored(self, scope: str) -> list[Flight]:
        return [flight for flight in self._live.get(scope, {}).values() if not flight.is_stored]

    async def _renew_and_restore(self, scope: str) -> None:
        for flight, standing in await self._renew(self._access.store, scope):
            if standing is Standing.MISSING:
                await self._restore(flight)
            elif standing is Standing.KEPT:
                await self._save(flight)
            elif not flight.is_fenced:
                flight.is_fenced = True
                log.warning("taken for dead: another request leads %s", flight.claim.id)

    async def _renew_all(self, store: LedgerStore) -> None:
        for scope in list(self._live):
            await self._renew(store, scope)

    async def _renew(self, store: LedgerStore, scope: str) -> list[tuple[Flight, Standing]]:
        renewed: list[tuple[Flight, Standing]] = []
        flights = list(self._live.get(scope, {}).values())
        for start in range(0, len(flights), RENEW_AT_ONCE):
            part = flights[start : start + RENEW_AT_ONCE]
            claims = [flight.claim for flight in part]
            standings = await store.keep_alive(claims, self._lease_ms)
            renewed += zip(part, standings, strict=True)
        return [one for one in renewed if self._of(one[0].claim) is one[0]]

    async def _restore(self, flight: Flight) -> Standing:
        flight.unsaved = NOTHING
        parts = dict(flight.parts)
        try:
            standing = await self._access.store.restore(
                flight.claim, flight.entry, self._lease_ms, parts
            )
        except StoreUnavailable:
            flight.unsaved |= set(parts)
            raise
        flight.is_stored = True
        return standing

    async def _save(self, flight: Flight) -> None:
        """Tell the store the parts that it lacks. Raises StoreUnavailable."""
        while flight.unsaved:
            index = min(flight.unsaved)
            urls = flight.parts[index]
            standing = await self._access.store.progress(flight.claim, index, urls)
            if flight.parts[index] is urls:
                flight.unsaved -= {index}
            if standing is Standing.MISSING:
                await self._restore(flight)

    async def _settle_or_owe(self, owed: Owed) -> None:
        scope = owed.flight.claim.scope
        if self._access.is_lost(scope):
            self._owe(owed)
            return
        try:
            await self._settle(owed)
        except StoreUnavailable as lost:
            self._access.lost(scope, lost)
            self._owe(owed)
        except asyncio.CancelledError:
            self._owe(owed)
            raise

    async def _settle(self, owed: Owed) -> None:
        flight, store = owed.flight, self._access.store
        ending = older(owed.ending, asyncio.get_running_loop().time() - owed.at)
        standing = await write(store, flight.claim, ending)
        if standing is Standing.MISSING:
            await self._restore(flight)
            await write(store, flight.claim, ending)
        elif standing is Standing.FENCED:
            for index, urls in flight.parts.items():
                await store.progress(flight.claim, index, urls)

    def _owe(self, owed: Owed) -> None:
        if self.owed >= OWED_MAX:
            longest = max(self._owed, key=lambda scope: len(self._owed[scope]))
            dropped = self._owed[longest].popleft()
            if not self._owed[longest]:
                del self._owed[longest]
            self.dropped += 1
            log.error("ending lost, too many are owed: %s", dropped.flight.claim.id)
        self._owed.setdefault(owed.flight.claim.scope, deque()).append(owed)

    def _flights(self) -> Iterator[Flight]:
        return chain.from_iterable(flights.values() for flights in self._live.values())

    def _of(self, claim: Claim) -> Flight | None:
        flight = self.find((claim.scope, claim.id))
        return flight if flight and flight.claim == claim else None

    def _forget(self, flight: Flight) -> None:
        scope, id_ = flight.key
        flights = self._live[scope]
        del flights[id_]
        if not flights:
            del self._live[scope]

    def _forget_forgotten(self, now: float) -> None:
        for flight in [one for one in self._flights() if one.until <= now]:
            log.error("a generation was never ended: %s", flight.claim.id)
            self._forget(flight)
            self._release(flight.key, flight.waiters)


async def write(store: LedgerStore, claim: Claim, ending: Ending | Failure) -> Standing:
    """Tell a store how a generation ended."""
    if isinstance(ending, Ending):
        return await store.finish(claim, ending)
    return await store.fail(claim, ending)


def older(ending: Ending | Failure, age_s: float) -> Ending | Failure:
    """An ending as it is told so much later."""
    age_ms = round(age_s * 1000)
    if isinstance(ending, Failure) or age_ms <= 0:
        return ending
    return replace(
        ending,
        life_ms=ending.life_ms - age_ms,
        keep_ms=ending.keep_ms - age_ms,
        cache_ms=max(0, ending.cache_ms - age_ms),
    )


def uncached(ending: Ending | Failure) -> Ending | Failure:
    """As the fallback keeps it: a purge does not reach it, so it must not serve as a cache."""
    return replace(ending, cache_ms=0) if isinstance(ending, Ending) else ending
