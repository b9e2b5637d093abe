"""The ledger of one worker: every request passes it before anything is paid."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog
from msgspec.structs import replace

from gateway.domain.errors import (
    GatewayError,
    IncompleteResult,
    ServiceUnavailable,
    UpstreamAmbiguous,
    UpstreamTimeout,
)
from gateway.results.cache_policy import Record, decode, encode
from gateway.results.decisions import Done, Failed, Follow, Lead, Place
from gateway.results.failover import Access, LedgerStore
from gateway.results.followers import FollowerPoller, Key, Waiter, tell
from gateway.results.leases import Flights
from gateway.results.shared_errors import decode_error, encode_error
from gateway.store.base import StoreUnavailable
from gateway.store.generations import (
    IDEMPOTENCY_MS,
    UNDELIVERED_ADOPTED_MS,
    Begun,
    Claim,
    Departure,
    Ending,
    Entry,
    Failure,
    Found,
    How,
    Joined,
    Led,
    Phase,
    Refusal,
    Sight,
)

UNKNOWN = 1_000_000
"""Index of the part that holds an error after which nobody knows whether images were billed.

It is told again to whoever repeats the request by itself, an SDK or the holder of an idempotency
key. Somebody who asks anew pays for what is missing, having been told.
"""
TRIES = 3
"""Useless results that one request discards before it leads unseen."""
LAST_NOTES_S = 1.0
"""How long the end of the worker waits for what was left to tell the store."""
TRUST_AFTER_S = 1.0
"""After a loss of the store other workers' leaders are given so long to come back."""
LATE = Sight(Phase.RUNNING)
"""What a follower is told at its deadline."""


class Ledger:
    """Finds each request its place, and keeps this worker's leaderships alive.

    `fallback` is an in-process store that shadows what this worker leads; without one (the store
    itself being in-process) the store is taken to be always there. `now` gives Unix seconds. A
    generation that has not ended after `longest_s` is given up as forgotten.
    """

    def __init__(
        self,
        store: LedgerStore,
        *,
        fallback: LedgerStore | None = None,
        now: Callable[[], float] = time.time,
        lease_s: float = 10.0,
        longest_s: float = 3600.0,
    ) -> None:
        self._access = Access(store, fallback)
        self._now = now
        self._lease_ms = round(lease_s * 1000)
        self._watcher = FollowerPoller(self._look, missing_s=lease_s / 3 + 1)
        self._flights = Flights(
            self._access, self._watcher.adopt, lease_s=lease_s, longest_s=longest_s
        )
        self._trust_at: dict[str, float] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def degraded(self) -> bool:
        """Whether, at least for some, only this worker's own generations are seen, and no cache."""
        return self._access.degraded

    @property
    def leading(self) -> int:
        """Generations that this worker is making."""
        return self._flights.live

    @property
    def followed(self) -> int:
        """Generations of other workers that somebody here waits for."""
        return self._watcher.followed

    @property
    def owed(self) -> int:
        """Endings that wait for the store to come back."""
        return self._flights.owed

    @property
    def dropped(self) -> int:
        """Endings lost because too many were owed."""
        return self._flights.dropped

    def start(self) -> None:
        """Keep leaderships alive in the background, from within a running event loop."""
        self._upkeep = asyncio.create_task(self._flights.keep_up(), name="ledger-upkeep")

    async def aclose(self) -> None:
        """Stop, and hand over what is owed and what is led if the store is there."""
        if self._upkeep:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        await self._watcher.aclose()
        if self._background:
            await asyncio.wait(self._background, timeout=LAST_NOTES_S)
        await self._flights.step_down()
        await self._flights.pay()
        if self.owed:
            structlog.get_logger().error(
                "endings_lost",
                cause="the store was away when this worker ended",
                endings=self.owed,
                scopes=self._flights.owed_by_scope(),
            )
        for task in self._background:
            task.cancel()

    # -- a request

    async def enter(self, entry: Entry) -> Place:
        """Find a request its place. Never raises StoreUnavailable."""
        if entry.idempotency and entry.adoption:
            entry = replace(entry, adoption=None)  # the key says it all
        return await self._enter(entry, None)

    async def excuse(self, entry: Entry) -> None:
        """A request that never led was answered by an error that SDKs retry.

        Its retry is then a new request, and adopts nothing that somebody else waits for.
        """
        adoption = entry.adoption
        if adoption and not entry.idempotency:
            await self._note(
                entry.scope, lambda store: store.excuse(entry.scope, adoption, entry.request)
            )

    async def delivered(self, place: Done | Lead) -> None:
        """The client has all of its answer."""
        await self._depart(place, Departure.DELIVERED)

    async def let_go(self, place: Done | Lead) -> None:
        """The client hung up without it; its retry may have the result."""
        await self._depart(place, Departure.LET_GO)

    def let_go_soon(self, place: Done | Lead) -> None:
        """As `let_go`, for whoever cannot wait."""
        self._spawn(self.let_go(place))

    async def hold(self, place: Done | Lead, hold_s: float) -> None:
        """Every image's bytes are held for so long."""
        hold_ms = round(hold_s * 1000)
        scope = place.entry.scope
        await self._note(scope, lambda store: store.hold(scope, place.id, hold_ms))

    async def discard(self, done: Done) -> None:
        """A result cannot be used: its bytes are gone, its URLs dead."""
        scope = done.entry.scope
        await self._note(scope, lambda store: store.discard(scope, done.id))

    # -- for Lead and Follow

    async def keep_part(self, claim: Claim, index: int, urls: Sequence[str]) -> None:
        await self._flights.keep_part(claim, index, urls)

    async def finish(self, claim: Claim, entry: Entry, record: Record, cache_s: float) -> None:
        result = encode(record)
        ending = Ending(
            result,
            life_ms=round(record.life_s(self._now()) * 1000),
            keep_ms=IDEMPOTENCY_MS if entry.idempotency else UNDELIVERED_ADOPTED_MS,
            cache_key=entry.cache_key,
            cache_ms=round(cache_s * 1000),
        )
        await self._flights.end(claim, ending, Sight(Phase.DONE, result))

    async def fail(
        self, claim: Claim, entry: Entry, error: GatewayError | None, *, answered: bool
    ) -> None:
        shared = None if error is None else encode_error(error)
        if shared is not None and is_unknown(error):
            await self._flights.keep_part(claim, UNKNOWN, (shared.hex(),))
        sight = None if shared is None else Sight(Phase.FAILED, shared)
        await self._flights.end(claim, Failure({}, shared, entry.adoption, answered), sight)

    async def abandon(self, claim: Claim) -> bool:
        return await self._flights.abandon(claim)

    async def outcome(self, entry: Entry, id_: str, deadline: float) -> Done | Lead | Failed:
        """One frame and one timer, since very many may wait."""
        loop = asyncio.get_running_loop()
        while True:
            waiter = self._wait((entry.scope, id_))
            timer = loop.call_at(deadline, tell, {waiter}, LATE)
            try:
                sight = await waiter
            except asyncio.CancelledError:
                self._leave_soon(entry, id_, waiter)
                raise
            finally:
                timer.cancel()
            if sight is LATE:
                self._leave_soon(entry, id_, waiter)
                return Failed(too_late())
            outcome = await self._settle(entry, id_, sight)
            if not isinstance(outcome, Follow):
                return outcome
            id_ = outcome.id

    # -- finding a place

    async def _enter(self, entry: Entry, follows: str | None) -> Place:
        for _ in range(TRIES):
            begun = await self._begin(entry, follows)
            place = await self._place(entry, begun)
            if place is not None:
                return place
        return Lead(self, entry, Claim(entry.scope, entry.request, entry.request), {})

    async def _begin(self, entry: Entry, follows: str | None) -> Begun:
        try:
            return await self._access.ask(
                entry.scope, lambda store: store.begin(entry, self._lease_ms, follows)
            )
        except asyncio.CancelledError:
            self._spawn(self._undo(entry, follows))
            raise

    async def _undo(self, entry: Entry, follows: str | None) -> None:
        """The store may have been asked: ask again, since that changes nothing, and give it up."""
        scope = entry.scope
        begun = await self._access.ask(
            scope, lambda store: store.begin(entry, self._lease_ms, follows)
        )
        if isinstance(begun, Led):
            claim, left = begun.claim, Failure({}, None, entry.adoption, answered=False)
            if not await self._access.ask(
                scope, lambda store: store.abandon(claim, entry.adoption)
            ):
                await self._access.ask(scope, lambda store: store.fail(claim, left))
        elif isinstance(begun, Joined | Found):
            await self._leave(entry, begun.id)

    async def _place(self, entry: Entry, begun: Begun) -> Place | None:
        """None: what was found is no result of this gateway's."""
        match begun:
            case Led(claim, parts):
                waiters = self._watcher.take((claim.scope, claim.id))
                known = {index: urls for index, urls in parts.items() if index != UNKNOWN}
                await self._flights.open(entry, claim, known, waiters)
                if parts.get(UNKNOWN) and (entry.is_retry or entry.idempotency):
                    error = decode_error(bytes.fromhex(parts[UNKNOWN][0]))
                    await self.fail(claim, entry, error, answered=False)
                    return Failed(error)
                return Lead(self, entry, claim, known)
            case Joined(id_, how):
                return Follow(self, entry, id_, how)
            case Found(id_, result, age_ms, how):
                return await self._read(entry, id_, Sight(Phase.DONE, result, age_ms), how)
            case Refusal():
                return begun

    async def _read(self, entry: Entry, id_: str, sight: Sight, how: How) -> Done | None:
        record = decode(sight.payload, entry.images)
        if record is None:
            await self._note(entry.scope, lambda store: store.discard(entry.scope, id_))
            return None
        return Done(entry, id_, record, how, sight.age_ms / 1000)

    # -- following

    def _wait(self, key: Key) -> Waiter:
        """Wait here for a generation of this worker, by the watcher for another's."""
        flight = self._flights.find(key)
        if flight is None:
            return self._watcher.wait(key)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        flight.waiters[waiter] = None
        return waiter

    async def _settle(self, entry: Entry, id_: str, sight: Sight) -> Done | Follow | Lead | Failed:
        """What a follower makes of the end, or of there being none."""
        if sight.phase is Phase.FAILED:
            return Failed(decode_error(sight.payload))
        if sight.phase is Phase.DONE:
            done = await self._read(entry, id_, sight, How.JOINED)
            if done is not None:
                return done
        place = await self._enter(entry, id_)
        if isinstance(place, Refusal):
            return Failed(ServiceUnavailable("The images that were waited for are lost."))
        return place

    def _leave_soon(self, entry: Entry, id_: str, waiter: Waiter) -> None:
        """The generation may have changed hands meanwhile."""
        key = (entry.scope, id_)
        flight = self._flights.find(key)
        if flight is not None:
            flight.waiters.pop(waiter, None)
        self._watcher.leave(key, waiter)
        self._spawn(self._leave(entry, id_))

    async def _look(self, scope: str, ids: Sequence[str]) -> list[Sight]:
        """What the store sees; without it, and just after, other workers' leaders are trusted."""
        loop = asyncio.get_running_loop()
        sights = await self._access.ask(scope, lambda store: store.look(scope, ids))
        unknown = {Phase.MISSING}
        if self._access.is_lost(scope):
            self._trust_at[scope] = loop.time() + TRUST_AFTER_S
        elif loop.time() < self._trust_at.get(scope, 0.0):
            unknown.add(Phase.DEAD)
        else:
            self._trust_at.pop(scope, None)
            return sights
        return [Sight(Phase.RUNNING) if one.phase in unknown else one for one in sights]

    # -- notes

    async def _depart(self, place: Done | Lead, how: Departure) -> None:
        """Only adoption asks for it."""
        entry = place.entry
        is_repeat = isinstance(place, Done) and place.how in {How.HIT, How.REPLAYED}
        if entry.adoption and not is_repeat:
            claim = Claim(entry.scope, place.id, entry.request)
            await self._note(entry.scope, lambda store: store.depart(claim, entry.adoption, how))

    async def _leave(self, entry: Entry, id_: str) -> None:
        claim = Claim(entry.scope, id_, entry.request)
        await self._note(
            entry.scope, lambda store: store.depart(claim, entry.adoption, Departure.LET_GO)
        )

    async def _note(self, scope: str, note: Callable[[LedgerStore], Awaitable[None]]) -> None:
        """Tell the store what it can do without."""
        with contextlib.suppress(StoreUnavailable):
            await self._access.ask(scope, note)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def too_late() -> UpstreamTimeout:
    """A follower's own deadline: its retry finds what is being made, and pays nothing."""
    error = UpstreamTimeout("The images were not ready in time; they are still being made.")
    error.should_retry = True
    return error


def is_unknown(error: GatewayError | None) -> bool:
    """Whether a call's outcome is not known; one that brought too few images was answered."""
    return isinstance(error, UpstreamAmbiguous) and not isinstance(error, IncompleteResult)
