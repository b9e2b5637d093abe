"""When a waiting call's slot will come, computed from everyone's queues in the store. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.store.pacing import ClaimResult


class WaitEstimate:
    """Who goes before whom, as of one report of the store; `own` is this `worker`'s queue now."""

    def __init__(self, claimed: ClaimResult, worker: str, own: Mapping[str, int]) -> None:
        self._virtual_time = claimed.virtual_time
        self._order: dict[str, tuple[int, int, str]] = {}
        self._elsewhere: dict[str, list[int]] = {}
        self._waiting = dict(own)
        for share in claimed.flows:
            self._order[share.tenant] = (share.tag, share.served, share.tenant)
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
