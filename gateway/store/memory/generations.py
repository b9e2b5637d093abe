"""Generations in one process; `store/lua/flights.lua` and its operations decide in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import nsmallest
from operator import attrgetter

from gateway.store.generations import (
    MARGIN_MS,
    SHARED_ERROR_MS,
    Begun,
    Claim,
    Departure,
    Ending,
    Entry,
    Failure,
    Found,
    How,
    Idempotency,
    Joined,
    Led,
    Parts,
    Phase,
    Refusal,
    Shelf,
    Sight,
    Standing,
)
from gateway.store.memory.pointers import ORPHAN, Generation, Pointers

GENERATIONS_MAX = 10_000
"""Those that run apart: the ones that would be forgotten first make room, some kilobytes each."""
ROOM_EVERY = 256
"""Begins from one look at the room to the next."""
SWEEP_EVERY_MS = 10_000


class MemoryFlights:
    """`clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float], generations_max: int = GENERATIONS_MAX) -> None:
        self._now = clock
        self._most = generations_max
        self._scopes: dict[str, _Scope] = {}
        self._begins = 0

    async def begin(self, entry: Entry, lease_ms: int, follows: str | None = None) -> Begun:
        self._begins += 1
        if self._begins % ROOM_EVERY == 0:
            self._make_room()
        return self._scope(entry.scope).begin(entry, lease_ms, follows)

    async def restore(self, claim: Claim, entry: Entry, lease_ms: int, parts: Parts) -> Standing:
        return self._scope(claim.scope).restore(claim, entry, lease_ms, parts)

    async def progress(self, claim: Claim, index: int, urls: Sequence[str]) -> Standing:
        return self._scope(claim.scope).keep(claim, {index: tuple(urls)})

    async def finish(self, claim: Claim, ending: Ending) -> Standing:
        return self._scope(claim.scope).finish(claim, ending)

    async def fail(self, claim: Claim, failure: Failure) -> Standing:
        return self._scope(claim.scope).fail(claim, failure)

    async def abandon(self, claim: Claim, adoption: str | None) -> bool:
        return self._scope(claim.scope).abandon(claim, adoption)

    async def keep_alive(self, claims: Sequence[Claim], lease_ms: int) -> list[Standing]:
        return [self._scope(claim.scope).renew(claim, lease_ms) for claim in claims]

    async def look(self, scope: str, ids: Sequence[str]) -> list[Sight]:
        state = self._scope(scope)
        return [state.look(id_) for id_ in ids]

    async def depart(self, claim: Claim, adoption: str | None, how: Departure) -> None:
        self._scope(claim.scope).depart(claim, adoption, how)

    async def excuse(self, scope: str, adoption: str, request: str) -> None:
        self._scope(scope).excuse(adoption, request)

    async def hold(self, scope: str, id_: str, hold_ms: int) -> None:
        self._scope(scope).hold(id_, hold_ms)

    async def discard(self, scope: str, id_: str) -> None:
        self._scope(scope).discard(id_)

    async def shelf(self, scope: str) -> Shelf:
        return self._scope(scope).shelf()

    async def purge(self, scope: str) -> int:
        return self._scope(scope).purge()

    def _scope(self, name: str) -> _Scope:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = _Scope()
        scope.advance(int(self._now() * 1000))
        return scope

    def _make_room(self) -> None:
        """The largest scope gives way; nobody else's results pay for its."""
        excess = sum(scope.size for scope in self._scopes.values()) - self._most
        if excess > 0:
            largest = max(self._scopes.values(), key=lambda scope: scope.size)
            largest.drop(excess + self._most // 10)


class _Scope:
    def __init__(self) -> None:
        self._now = 0
        self._sweep_at = 0
        self._known: dict[str, Generation] = {}
        self._pointers = Pointers()
        self._counts: Counter[str] = Counter()

    def advance(self, now_ms: int) -> None:
        self._now = now_ms
        if now_ms >= self._sweep_at:
            self._sweep()

    # -- finding

    def _find(self, id_: str) -> Generation | None:
        one = self._known.get(id_)
        return one if one and one.gone > self._now else None

    def begin(self, entry: Entry, lease_ms: int, follows: str | None) -> Begun:
        own = self._find(self._pointers.led_by(entry.request, self._now))
        if own and own.is_led_by(entry.request):
            return self._led(own, entry)
        if entry.idempotency:
            id_, is_same = self._pointers.by_key(entry.idempotency, self._now)
            if self._find(id_) and not is_same:
                return Refusal.CONFLICT
        candidates = list(self._candidates(entry, follows))
        for one, how in candidates:
            if answer := self._free(one, entry, how, follows):
                return answer
        if entry.only_if_cached:
            return Refusal.MISSING
        dead = (one for one, _ in candidates if one.phase is not Phase.DONE)
        return self._lead(entry, next(dead, None), lease_ms, follows)

    def _candidates(self, entry: Entry, follows: str | None) -> Iterator[tuple[Generation, How]]:
        """In the order in which they are preferred, where all cost or none does."""
        if followed := self._find(follows or ""):
            yield followed, How.JOINED
        if entry.idempotency:
            id_, _ = self._pointers.by_key(entry.idempotency, self._now)
            if repeated := self._find(id_):
                yield repeated, How.REPLAYED
        elif follows is None and (adopted := self._adopt(entry)):
            yield adopted, How.ADOPTED
        if entry.cache_key and not entry.fresh:
            slot = self._pointers.slot(entry.cache_key)
            done = self._find(slot.done)
            if done and self._is_cached(done, entry):
                yield done, How.HIT
            if running := self._find(slot.running):
                yield running, How.JOINED

    def _is_cached(self, one: Generation, entry: Entry) -> bool:
        is_young = entry.max_age_ms is None or self._now - one.ended <= entry.max_age_ms
        return one.cached > self._now and is_young

    def _adopt(self, entry: Entry) -> Generation | None:
        takes_orphans = entry.takes_orphans and not entry.fresh
        if entry.adoption is None or not (entry.is_retry or takes_orphans):
            return None
        adoptable = self._pointers.adoptable(entry.adoption)
        return adoptable.best(self._find, entry.request, self._now, is_retry=entry.is_retry)

    # -- answering

    def _free(
        self, one: Generation, entry: Entry, how: How, follows: str | None
    ) -> Led | Joined | Found | None:
        """The answer, where this generation costs the request nothing."""
        if one.is_led_by(entry.request):
            return self._led(one, entry)
        if one.is_led(self._now) and not entry.only_if_cached:
            return self._joined(one, entry, how, is_new=one.id != follows)
        if one.phase is Phase.DONE:
            has_bytes = one.held > self._now and not entry.needs_url
            margin_ms = 0 if one.id == follows else MARGIN_MS
            if has_bytes or one.dies - margin_ms > self._now:
                return self._found(one, entry, how)
        return None

    def _found(self, one: Generation, entry: Entry, how: How) -> Found:
        self._counts[how] += 1
        if how is How.ADOPTED:
            self._claim(one, entry)
        elif how is How.HIT and entry.idempotency:
            self._pointers.point_key(entry.idempotency, one.id, self._now)
        return Found(one.id, one.payload, self._now - one.ended, how)

    def _joined(self, one: Generation, entry: Entry, how: How, *, is_new: bool) -> Joined:
        if is_new:
            self._counts[how] += 1
        if how is How.ADOPTED:
            self._claim(one, entry)
        elif is_new:
            one.clients += 1
        self._point(one, entry)
        return Joined(one.id, how)

    def _claim(self, one: Generation, entry: Entry) -> None:
        """No other retry shall have it."""
        one.clients += one.claimed != entry.request
        one.claimed = entry.request
        self._pointers.adoptable(entry.adoption).score(one)

    def _led(self, one: Generation, entry: Entry) -> Led:
        return Led(Claim(entry.scope, one.id, entry.request), dict(one.parts))

    def _lead(
        self, entry: Entry, dead: Generation | None, lease_ms: int, follows: str | None
    ) -> Led:
        self._counts["led"] += 1
        one = dead or Generation(entry.request, entry.plan, self._now)
        others = one.clients - 1 if one.phase is Phase.RUNNING else 0
        one.clients = max(1, others + (one.id != follows))
        if one.plan != entry.plan:
            one.parts, one.plan = {}, entry.plan
        one.run(entry.request, self._now + lease_ms)
        self._pointers.lead(one)
        self._known[one.id] = one
        self._point(one, entry)
        self._run_for_all(one, entry)
        return self._led(one, entry)

    def _point(self, one: Generation, entry: Entry) -> None:
        if entry.idempotency:
            self._pointers.point_key(entry.idempotency, one.id, self._now)
        elif entry.adoption:
            self._pointers.adoptable(entry.adoption).add(one)

    def _run_for_all(self, one: Generation, entry: Entry) -> None:
        """Others join it by the cache key, unless they are joining another already."""
        if entry.cache_key:
            slot = self._pointers.slot(entry.cache_key)
            other = self._find(slot.running)
            if other is None or not other.is_led(self._now):
                slot.running = one.id

    # -- making

    def restore(self, claim: Claim, entry: Entry, lease_ms: int, parts: Parts) -> Standing:
        if self._find(claim.id) is None:
            one = Generation(claim.id, entry.plan, self._now, claim.leader, clients=1)
            one.lease = self._now
            self._known[one.id] = one
            if entry.idempotency is None or not self._is_held(entry.idempotency):
                self._point(one, entry)
            self._run_for_all(one, entry)
        self.keep(claim, parts)
        return self.renew(claim, lease_ms)

    def _is_held(self, idempotency: Idempotency) -> bool:
        return self._find(self._pointers.by_key(idempotency, self._now)[0]) is not None

    def keep(self, claim: Claim, parts: Parts) -> Standing:
        one = self._find(claim.id)
        if one and one.phase is not Phase.DONE:
            one.keep(parts, claim.leader)
        return self._standing(claim)

    def _standing(self, claim: Claim) -> Standing:
        one = self._find(claim.id)
        if one is None:
            return Standing.MISSING
        return Standing.KEPT if one.leader == claim.leader else Standing.FENCED

    def finish(self, claim: Claim, ending: Ending) -> Standing:
        one = self._find(claim.id)
        if one is None or one.leader != claim.leader or one.phase is Phase.DONE:
            return self._standing(claim)
        one.end(Phase.DONE, ending.result, self._now)
        one.parts = {}
        one.dies = self._now + ending.life_ms
        one.kept = self._now + ending.keep_ms
        if ending.cache_key:
            slot = self._pointers.slot(ending.cache_key)
            if slot.running == one.id:
                slot.running = ""
            if ending.cache_ms > 0:
                slot.done, one.cached = one.id, self._now + ending.cache_ms
        return Standing.KEPT

    def fail(self, claim: Claim, failure: Failure) -> Standing:
        standing = self.keep(claim, failure.parts)
        one = self._find(claim.id)
        if one and one.is_led_by(claim.leader):
            one.end(Phase.FAILED, failure.error or b"", self._now)
            self._leave_parts(one, failure.adoption)
            if failure.answered and failure.adoption and not one.parts:
                self.excuse(failure.adoption, claim.leader)
        return standing

    def _leave_parts(self, one: Generation, adoption: str | None) -> None:
        """A retry shall find them, and nothing where there are none."""
        adoptable = self._pointers.adoptable(adoption)
        if one.parts:
            adoptable.score(one, ORPHAN)
        else:
            adoptable.drop(one.id)

    def abandon(self, claim: Claim, adoption: str | None) -> bool:
        one = self._find(claim.id)
        if one is None or not one.is_led_by(claim.leader):
            return True
        if one.clients > 1:
            return False
        one.end(Phase.FAILED, b"", self._now)
        self._leave_parts(one, adoption)
        if not one.parts:
            del self._known[one.id]
        return True

    def renew(self, claim: Claim, lease_ms: int) -> Standing:
        one = self._find(claim.id)
        if one and one.is_led_by(claim.leader):
            one.lease = self._now + lease_ms
        return self._standing(claim)

    # -- looking, leaving, tidying

    def look(self, id_: str) -> Sight:
        one = self._find(id_)
        if one is None:
            return Sight(Phase.MISSING)
        age_ms = self._now - one.ended
        if one.is_led(self._now):
            return Sight(Phase.RUNNING)
        if one.phase is Phase.DONE and one.dies > self._now:
            return Sight(Phase.DONE, one.payload, age_ms)
        if one.phase is Phase.FAILED and one.payload and age_ms <= SHARED_ERROR_MS:
            return Sight(Phase.FAILED, one.payload, age_ms)
        return Sight(Phase.DEAD)

    def depart(self, claim: Claim, adoption: str | None, how: Departure) -> None:
        one = self._find(claim.id)
        if one is None:
            return
        if how is Departure.DELIVERED:
            one.delivered = one.delivered or self._now
            self._pointers.adoptable(adoption).score(one)
            return
        one.clients = max(0, one.clients - 1)
        if one.claimed == claim.leader:
            one.claimed = ""
        if not one.clients and not one.delivered and one.phase is not Phase.FAILED:
            self._pointers.adoptable(adoption).score(one, ORPHAN)

    def excuse(self, adoption: str, request: str) -> None:
        self._pointers.adoptable(adoption).excuse(request, self._now)

    def hold(self, id_: str, hold_ms: int) -> None:
        one = self._find(id_)
        if one and one.phase is Phase.DONE:
            one.held = self._now + hold_ms

    def discard(self, id_: str) -> None:
        one = self._find(id_)
        if one and one.phase is Phase.DONE:
            del self._known[id_]

    def shelf(self) -> Shelf:
        on_it = self._cached()
        return Shelf(len(on_it), sum(len(one.payload) for one in on_it), dict(self._counts))

    def purge(self) -> int:
        on_it = self._cached()
        for one in on_it:
            one.cached = one.held = 0
        self._sweep()
        return len(on_it)

    def _cached(self) -> list[Generation]:
        return [one for one in self._known.values() if one.shelved > self._now]

    @property
    def size(self) -> int:
        return len(self._known)

    def drop(self, excess: int) -> None:
        """Forget so many, those first that would be forgotten first; none that runs."""
        ended = (one for one in self._known.values() if one.phase is not Phase.RUNNING)
        for one in nsmallest(excess, ended, key=attrgetter("gone")):
            del self._known[one.id]
        self._sweep()

    def _sweep(self) -> None:
        """Forget what has expired, and pointers to nothing."""
        self._known = {id_: one for id_, one in self._known.items() if one.gone > self._now}
        self._pointers.forget(self._known, self._now)
        self._sweep_at = self._now + SWEEP_EVERY_MS
