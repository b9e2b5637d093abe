"""Who waits for one model in one worker, and when each one's slot will come.

Bookkeeping only: nothing here waits or wakes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from gateway.store.pacing import ClaimResult, Grant


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


class WaitEstimate:
    """Who goes before whom, as of one report of the store; `own` is this `worker`'s queue now."""

    def __init__(self, claimed: ClaimResult, worker: str, own: Mapping[str, int]) -> None:
        self._virtual_time = claimed.virtual_time
        self._order: dict[str, tuple[int, int, str]] = {}
        self._elsewhere: dict[str, list[int]] = {}
        self._waiting = dict(own)
        for share in claimed.shares:
            self._order[share.tenant] = (share.start_tag, share.served, share.tenant)
            if share.worker != worker:
                self._elsewhere.setdefault(share.tenant, []).append(share.waiting)
                self._waiting[share.tenant] = self._waiting.get(share.tenant, 0) + share.waiting
        self.total = sum(self._waiting.values())

    def before(self, tenant: str, position: int) -> int:
        """Calls served before the one with `position` calls of its tenant before it here.

        Other tenants are served once for each of our rounds, and once more if they are ahead of us.
        """
        others = self._elsewhere.get(tenant, ())
        rounds = position + sum(min(waiting, position + 1) for waiting in others)
        virtual_start, *ours = self._priority(tenant)
        served = rounds
        for other, waiting in self._waiting.items():
            if other != tenant:
                their_start, *theirs = self._priority(other)
                ahead = virtual_start - their_start
                # At an equal start, who was served less recently goes first; a later start today
                # means that we will have been served in the round before.
                is_first = theirs < ours if ahead == 0 else ahead < 0
                served += min(max(rounds + ahead + is_first, 0), waiting)
        return served

    def _priority(self, tenant: str) -> tuple[int, int, str]:
        """Virtual start time, when last served, name: the least goes next."""
        return self._order.get(tenant, (self._virtual_time, 0, tenant))


def slot_at(schedule: Sequence[tuple[float, float]], number: int, now: float) -> float:
    """The time of slot `number` (from 0) over accounts of (next free, interval), in seconds."""
    starts = [(max(free, now), interval) for free, interval in schedule]
    if len(starts) == 1:
        start, interval = starts[0]
        return start + number * interval
    return _merged(starts, number)


def _merged(starts: Sequence[tuple[float, float]], number: int) -> float:
    """The least time by which all accounts together have had more than `number` slots."""
    low = min(start for start, _ in starts)
    high = min(start + number * interval for start, interval in starts)
    while high - low > 0.001:
        middle = (low + high) / 2
        had = sum(int((middle - start) / step) + 1 for start, step in starts if start <= middle)
        low, high = (low, middle) if had > number else (middle, high)
    return high
