"""Whole requests in one process; `lua/requests/` decides in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store.generations import FencingResult, Leadership, Refusal
from gateway.store.limits import Settlement, Verdict
from gateway.store.memory.generations import MemoryGenerations
from gateway.store.memory.limits import MemoryLimits
from gateway.store.requests import End, Entered, EnterRequest, Leave, reserved_for


class MemoryRequests(MemoryLimits, MemoryGenerations):
    async def enter(self, request: EnterRequest) -> Entered:
        self._make_room()
        entry, take, follows = request.entry, request.take, request.follows
        books, scope = self._books_of(take.tenant), self._scope(entry.scope)
        if books.is_over(entry.request):
            return Entered(books.verdict(take.limits), Refusal.MISSING)
        choice = scope.choose(entry, follows)
        if isinstance(choice.kind, Refusal):
            return Entered(books.verdict(take.limits), choice.kind)
        known_images = choice.known_images(entry.plan)
        want = reserved_for(take.reservation, pays=choice.pays, known_images=known_images)
        is_known, is_live = books.is_known(want.id), books.is_live(want.id)
        may_take = not is_live and books.may_take_place(choice.former, take.limits)
        former = choice.former if may_take else None
        reason, retry_after_ms = books.obstacle(take.limits, want, former)
        if reason is not None:
            return Entered(books.verdict(take.limits, reason, retry_after_ms), None)
        cached = None if is_known else choice.answers_at_once(entry, follows)
        if cached is not None:
            books.admit_passing(want)
            scope.count(choice.how)
            found = scope.found(cached, choice.how)
            return Entered(books.verdict(take.limits), found, has_left=True)
        books.admit(want, take.lease_ms, former)
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
        standing = scope.end(end.leadership, end.outcome, end.retry_key, end.client)
        books.settle(settlement)
        if end.client is not None:
            books.leave(settlement.reservation)
        return standing, books.verdict(settlement.limits)

    async def leave(self, leave: Leave) -> Verdict:
        settlement = leave.settlement
        request = settlement.reservation
        books, scope = self._books_of(settlement.tenant), self._scope(leave.scope)
        is_repeated = books.has_left(request)
        books.settle(settlement)
        books.leave(request)
        if is_repeated:
            pass
        elif leave.generation is None:
            scope.withdraw(request, leave.retry_key)
        else:
            scope.leave(leave.generation, request, leave.retry_key, leave.outcome)
        return books.verdict(settlement.limits)
