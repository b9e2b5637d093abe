"""Ends and leaves that are still to be written to the store, while it is away."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import structlog
from msgspec import Struct

from gateway.results.holdings import Generation
from gateway.store.requests import End, Leave

MOST = 10_000
"""Ends and leavings kept, some kilobytes each."""

log = structlog.get_logger()


class Owed(Struct, frozen=True):
    """Something to write to the store, and when it happened."""

    scope: str
    what: End | Leave
    at: float
    """In the event loop's seconds."""
    generation: Generation | None = None
    """The generation that ended, to restore it where the store has lost it."""


class Backlog:
    """In order per scope; bounded: what does not fit is logged and counted."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._owed: dict[str, deque[Owed]] = {}
        self.size = 0
        self.dropped = 0

    def scopes(self) -> set[str]:
        return set(self._owed)

    def all(self) -> list[Owed]:
        return [owed for waiting in self._owed.values() for owed in waiting]

    def has(self, scope: str) -> bool:
        return scope in self._owed

    def add(self, owed: Owed) -> None:
        """The longest backlog's oldest makes room."""
        if self.size >= self._most:
            longest = max(self._owed, key=lambda scope: len(self._owed[scope]))
            dropped = self._take(longest)
            self.dropped += 1
            settlement = dropped.what.settlement
            log.error(
                "settlement_lost",
                cause="too many are owed to the store",
                tenant=settlement.tenant,
                request=settlement.reservation,
                images=settlement.images,
                cost_micros=settlement.cost,
            )
        self._owed.setdefault(owed.scope, deque()).append(owed)
        self.size += 1

    async def pay(self, scope: str, tell: Callable[[Owed], Awaitable[object]]) -> None:
        """Tell the store everything of a scope, the oldest first; what `tell` raises ends it."""
        while waiting := self._owed.get(scope):
            owed = waiting[0]
            await tell(owed)
            # More may have been owed meanwhile, and the oldest of them dropped.
            if self._owed.get(scope) is waiting and waiting and waiting[0] is owed:
                self._take(scope)

    def log_lost(self) -> None:
        """Log what the store will never count: somebody has to add it to the budgets by hand."""
        owed = self.all()
        results = sum(isinstance(one.what, End) for one in owed)
        # A request's end and its leaving settle the same: what it has used, not more of it.
        settled = {one.what.settlement.reservation: one.what.settlement for one in owed}
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

    def _take(self, scope: str) -> Owed:
        waiting = self._owed[scope]
        owed = waiting.popleft()
        if not waiting:
            del self._owed[scope]
        self.size -= 1
        return owed
