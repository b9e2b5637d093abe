"""Who waits for one model in one worker. Bookkeeping only: nothing here waits or wakes."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from gateway.store.pacing import Grant


class NoSlot(Exception):
    """No slot in time, found on arrival or at the deadline; nothing was sent."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"no upstream slot in time; one is expected in {retry_after_s:.3f} s")
        self.retry_after_s = retry_after_s
        """Seconds until the slot would have come if nobody else joins."""


class QueueFull(NoSlot):
    """The queue of this model, or of this tenant in it, is full."""


class SlotTooLate(NoSlot):
    """The slot comes, or would have come, after the deadline."""


class QueueBounds(Struct, frozen=True):
    """How many calls may wait in one worker."""

    per_model: int = 10_000
    per_tenant: int = 5_000
    """For one model."""


class Slot(Struct, frozen=True):
    """One call may be sent now, on this account."""

    account: str
    grant: Grant | None = None
    """None where the account is not paced."""


class Waiter:
    """One call in the queue; five thousand of them must be cheap."""

    __slots__ = ("accounts", "calls", "deadline", "is_checked", "slot", "tenant")

    def __init__(
        self,
        tenant: str,
        accounts: tuple[str, ...],
        deadline: float,
        calls: int,
        slot: asyncio.Future[Slot],
    ) -> None:
        self.tenant = tenant
        self.accounts = accounts
        self.deadline = deadline
        self.calls = calls
        self.slot = slot
        """Unset once the call has left the queue."""
        self.is_checked = False
        """Whether its slot was found to come in time."""

    def give(self, slot: Slot) -> bool:
        """Returns whether the call still wants it."""
        if self.slot.done():
            return False
        self.slot.set_result(slot)
        return True

    def refuse(self, why: Exception) -> None:
        if not self.slot.done():
            self.slot.set_exception(why)

    def __lt__(self, other: Waiter) -> bool:
        """For the heap: the earliest deadline first."""
        return self.deadline < other.deadline

    def follows(self, other: Waiter) -> bool:
        """Whether this is the next call of the same request."""
        return self.deadline == other.deadline and self.calls == other.calls - 1


class WaitQueue:
    """Tenants side by side, first come first served in each."""

    def __init__(self) -> None:
        self.size = 0
        self.tenants: dict[str, dict[Waiter, None]] = {}
        self._account_sets: Counter[tuple[str, ...]] = Counter()
        self._deadlines: list[Waiter] = []

    def size_of(self, tenant: str) -> int:
        return len(self.tenants.get(tenant, ()))

    def waiting(self) -> dict[str, int]:
        return {tenant: len(waiters) for tenant, waiters in self.tenants.items()}

    def accounts(self) -> list[str]:
        return sorted({name for names in self._account_sets for name in names})

    def join(self, waiter: Waiter) -> None:
        self.size += 1
        self.tenants.setdefault(waiter.tenant, {})[waiter] = None
        self._account_sets[waiter.accounts] += 1
        if len(self._deadlines) > 2 * self.size + 64:
            self._deadlines = [other for other in self._deadlines if other in self]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, waiter)

    def leave(self, waiter: Waiter) -> None:
        # It stays among the deadlines for a while, where what its call ended with, and every frame
        # in that, must not stay with it.
        del waiter.slot
        self.size -= 1
        waiters = self.tenants[waiter.tenant]
        del waiters[waiter]
        if not waiters:
            del self.tenants[waiter.tenant]
        self._forget_accounts(waiter)

    def change_accounts(self, waiter: Waiter, accounts: tuple[str, ...]) -> None:
        self._forget_accounts(waiter)
        waiter.accounts = accounts
        self._account_sets[accounts] += 1

    def _forget_accounts(self, waiter: Waiter) -> None:
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
                if account in waiter.accounts:
                    return waiter
        return None

    def next_deadline(self) -> Waiter | None:
        while self._deadlines and self._deadlines[0] not in self:
            heapq.heappop(self._deadlines)
        return self._deadlines[0] if self._deadlines else None

    def unchecked(self, tenant: str) -> Iterator[tuple[int, Waiter]]:
        """Calls since the last check, latest first, with the number of its tenant before each."""
        waiters = self.tenants.get(tenant, {})
        for after, waiter in enumerate(reversed(waiters), start=1):
            if waiter.is_checked:
                return
            yield len(waiters) - after, waiter
