"""The in-process store: one worker, the same decisions as the shared one.

`tenant` keeps the books of one tenant, `scope` the generations of one scope, and `places` finds a
request its place among them. Whole requests are decided here as by `lua/requests/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo

from gateway.domain.clock import ZoneClock
from gateway.store.availability import Share
from gateway.store.generations import (
    CacheStats,
    Entry,
    FencingResult,
    GenerationStatus,
    Leadership,
    Parts,
    Refusal,
)
from gateway.store.limits import Limits, Reservation, Settlement, Usage, Verdict
from gateway.store.memory.pacing import MemoryPace
from gateway.store.memory.scope import ScopeState
from gateway.store.memory.tenant import TenantBooks
from gateway.store.requests import End, Entered, EnterRequest, Leave

__all__ = ["MemoryStore"]

GENERATIONS_MAX = 10_000
"""Generations that are not running: beyond it, the first to expire make room."""
ROOM_EVERY = 256
"""Requests between two looks at the room."""


class MemoryStore(MemoryPace):
    """Nothing in it awaits, so every operation is atomic.

    `clock` gives Unix seconds; days and months are those of `zone`.
    """

    reconnects = 0

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        zone: tzinfo = UTC,
        generations_max: int = GENERATIONS_MAX,
    ) -> None:
        super().__init__(clock)
        self._zone = ZoneClock(zone)
        self._most = generations_max
        self._tenants: dict[str, TenantBooks] = {}
        self._scopes: dict[str, ScopeState] = {}
        self._entered = 0

    # -- requests

    async def enter(self, request: EnterRequest) -> Entered[bytes]:
        self._make_room()
        entry, take, follows = request.entry, request.take, request.follows
        books, scope = self._books_of(take.tenant), self._scope(entry.scope)
        if books.is_over(entry.request):
            return Entered(books.verdict(take.limits), Refusal.MISSING)
        choice = scope.choose(entry, follows)
        if isinstance(choice.kind, Refusal):
            return Entered(books.verdict(take.limits), choice.kind)
        cached = choice.answers_at_once(entry, follows)
        has_passed = books.has_passed(entry.request)
        if has_passed and cached is not None:  # the answer was lost
            found = scope.found(cached, choice.how)
            return Entered(books.verdict(take.limits), found, has_left=True)
        want = take.reservation.less(choice.known_images(entry.plan_hash))
        is_known, is_live = books.is_known(want.id), books.is_live(want.id)
        may_take = not is_live and books.may_take_place(choice.former, take.limits)
        former = choice.former if may_take else None
        reason, retry_after_ms = books.obstacle(take.limits, want, former)
        if reason is not None:
            return Entered(books.verdict(take.limits, reason, retry_after_ms), None)
        if cached is not None and not is_known:
            books.admit_passing(want)
            scope.count(choice.how)
            found = scope.found(cached, choice.how)
            return Entered(books.verdict(take.limits), found, has_left=True)
        books.admit(want, take.lease_ms, former)
        is_known = is_known and not has_passed
        place = scope.take(choice, entry, request.lead_ms, follows, is_known=is_known)
        return Entered(books.verdict(take.limits), place)

    async def progress(
        self, leadership: Leadership, index: int, urls: Sequence[str], settlement: Settlement
    ) -> FencingResult:
        self._books_of(settlement.tenant).use(settlement)
        return self._scope(leadership.scope).keep(leadership, {index: tuple(urls)})

    async def end(self, end: End) -> tuple[FencingResult, Verdict]:
        settlement = end.settlement
        scope, books = self._scope(end.leadership.scope), self._books_of(settlement.tenant)
        fencing = scope.end(end)
        books.settle(settlement)
        if end.leaves:
            books.leave(settlement.reservation)
        return fencing, books.verdict(settlement.limits)

    async def leave(self, leave: Leave) -> Verdict:
        settlement = leave.settlement
        request = settlement.reservation
        books, scope = self._books_of(settlement.tenant), self._scope(leave.scope)
        has_left = books.has_left(request)
        books.settle(settlement)
        books.leave(request)
        scope.leave(leave, has_left=has_left)
        return books.verdict(settlement.limits)

    # -- limits

    async def renew(self, tenant: str, reservations: Sequence[Reservation], lease_ms: int) -> None:
        books = self._books_of(tenant)
        for reservation in reservations:
            books.renew(reservation, lease_ms)

    async def levels(self, tenant: str, limits: Limits) -> Verdict:
        return self._books_of(tenant).verdict(limits)

    async def usage(self, tenant: str, limits: Limits) -> Usage:
        books = self._books_of(tenant)
        return Usage(tenant, books.verdict(limits), dict(books.day.use), dict(books.month.use))

    # -- generations

    async def restore(
        self, leadership: Leadership, entry: Entry, lead_ms: int, parts: Parts
    ) -> FencingResult:
        return self._scope(leadership.scope).restore(leadership, entry, lead_ms, parts)

    async def renew_leaderships(
        self, leaderships: Sequence[Leadership], lead_ms: int
    ) -> list[FencingResult]:
        return [self._scope(one.scope).renew(one, lead_ms) for one in leaderships]

    async def poll(self, scope: str, ids: Sequence[str]) -> list[GenerationStatus]:
        state = self._scope(scope)
        return [state.poll(id_) for id_ in ids]

    async def client_gone(self, leadership: Leadership, retry_key: str | None) -> None:
        self._scope(leadership.scope).client_gone(leadership, retry_key)

    async def pin_images(self, scope: str, id_: str, pin_ms: int) -> None:
        self._scope(scope).pin_images(id_, pin_ms)

    async def discard(self, scope: str, id_: str) -> None:
        self._scope(scope).discard(id_)

    async def cache_stats(self, scope: str) -> CacheStats:
        return self._scope(scope).cache_stats()

    async def purge(self, scope: str) -> int:
        return self._scope(scope).purge()

    # -- the backend

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:  # noqa: ARG002 - there is only one
        return Share()

    async def ping(self) -> None:
        return

    async def probe(self) -> None:
        return

    async def aclose(self) -> None:
        return

    # -- what is kept

    def _books_of(self, tenant: str) -> TenantBooks:
        books = self._tenants.get(tenant)
        if books is None:
            books = self._tenants[tenant] = TenantBooks()
        now = self._clock()
        books.begin_operation(int(now * 1000), self._zone.at(now))
        return books

    def _scope(self, name: str) -> ScopeState:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = ScopeState()
        scope.begin_operation(int(self._clock() * 1000))
        return scope

    def _make_room(self) -> None:
        """The largest scope gives way; other scopes keep their results."""
        self._entered += 1
        if self._entered % ROOM_EVERY:
            return
        excess = sum(scope.size for scope in self._scopes.values()) - self._most
        if excess > 0:
            largest = max(self._scopes.values(), key=lambda scope: scope.size)
            largest.drop(excess + self._most // 10)
