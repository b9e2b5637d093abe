"""Who waits for one model in one worker. Bookkeeping only: nothing here waits or wakes."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import count

from msgspec import Struct

from gateway.store.base import Grant


class NoSlot(Exception):
    """Refused without waiting, or after having waited in vain; nothing was sent."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"no upstream slot in time; one is expected in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s
        """When the slot would have come if nobody else joins: the true time to try again."""


class QueueFull(NoSlot):
    """As many calls wait already as may wait, for this model or this tenant."""


class SlotTooLate(NoSlot):
    """The slot comes, or would have come, after the deadline."""


class QueueBounds(Struct, frozen=True):
    """How many calls may wait in one worker."""

    per_model: int = 10_000
    per_tenant: int = 5_000
    """Of one tenant for one model."""


class Waiter:
    """One call in the queue; five thousand of them must be cheap."""

    __slots__ = ("accounts", "calls", "deadline", "future", "joined_at", "tenant", "weighed")

    def __init__(self, tenant: str, accounts: tuple[str, ...], deadline: float, calls: int) -> None:
        loop = asyncio.get_running_loop()
        self.tenant = tenant
        self.accounts = accounts
        self.deadline = deadline
        self.calls = calls
        self.future: asyncio.Future[Grant | Exception] = loop.create_future()
        self.joined_at = loop.time()
        self.weighed = False

    def follows(self, other: Waiter) -> bool:
        """Whether this is the next call of the same request."""
        return self.deadline == other.deadline and self.calls == other.calls - 1


class Line:
    """Tenants side by side, first come first served in each."""

    def __init__(self) -> None:
        self.size = 0
        self.tenants: dict[str, OrderedDict[Waiter, None]] = {}
        self._account_sets: Counter[tuple[str, ...]] = Counter()
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._sequence = count()

    def size_of(self, tenant: str) -> int:
        return len(self.tenants.get(tenant, ()))

    def waiting(self) -> dict[str, int]:
        return {tenant: len(waiters) for tenant, waiters in self.tenants.items()}

    def accounts(self) -> list[str]:
        """Every account that anyone here would take."""
        return sorted({name for names in self._account_sets for name in names})

    def join(self, waiter: Waiter) -> None:
        self.size += 1
        self.tenants.setdefault(waiter.tenant, OrderedDict())[waiter] = None
        self._account_sets[waiter.accounts] += 1
        if len(self._deadlines) > 2 * self.size + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, next(self._sequence), waiter))

    def leave(self, waiter: Waiter) -> None:
        self.size -= 1
        waiters = self.tenants[waiter.tenant]
        del waiters[waiter]
        if not waiters:
            del self.tenants[waiter.tenant]
        self._account_sets[waiter.accounts] -= 1
        if not self._account_sets[waiter.accounts]:
            del self._account_sets[waiter.accounts]

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self.tenants.get(waiter.tenant, ())

    def pick(self, tenant: str, account: str) -> Waiter | None:
        """The first of `tenant`, or else of another tenant, that would take `account`."""
        order = [tenant, *(other for other in self.tenants if other != tenant)]
        for name in order:
            for waiter in self.tenants.get(name, ()):
                # One that is done was cancelled this very moment and has yet to leave.
                if account in waiter.accounts and not waiter.future.done():
                    return waiter
        return None

    def next_deadline(self) -> Waiter | None:
        """The waiter whose time is up first."""
        while self._deadlines and self._deadlines[0][2] not in self:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][2] if self._deadlines else None

    def unweighed(self, tenant: str) -> Iterator[tuple[int, Waiter]]:
        """Who joined since the last look, with the number of its tenant's calls before it."""
        waiters = self.tenants.get(tenant, OrderedDict[Waiter, None]())
        for after, waiter in enumerate(reversed(waiters), start=1):
            if waiter.weighed:
                return
            yield len(waiters) - after, waiter
