"""When a waiting call's slot will come, from what the store knows of everyone's queues. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.store.pacing import ClaimResult


class WaitEstimate:
    """Who goes before whom, as of one look at the store.

    `own` is what waits in `worker` itself by now; of the others the store's report is taken.
    """

    def __init__(self, claimed: ClaimResult, worker: str, own: Mapping[str, int]) -> None:
        self._virtual_time = claimed.virtual_time
        self._order: dict[str, tuple[int, int, str]] = {}
        self._elsewhere: dict[str, list[int]] = {}
        self._waiting = dict(own)
        for flow in claimed.flows:
            self._order[flow.tenant] = (flow.tag, flow.served, flow.tenant)
            if flow.worker != worker:
                self._elsewhere.setdefault(flow.tenant, []).append(flow.waiting)
                self._waiting[flow.tenant] = self._waiting.get(flow.tenant, 0) + flow.waiting
        self.total = sum(self._waiting.values())

    def before(self, tenant: str, position: int) -> int:
        """Calls served before the one with `position` calls of its tenant before it here.

        Workers take turns inside a tenant, and tenants take turns: another one is served once
        for each of our rounds, and once more where it is ahead of us in the order.
        """
        others = self._elsewhere.get(tenant, ())
        rounds = position + sum(min(waiting, position + 1) for waiting in others)
        mine = self._place(tenant)
        served = rounds
        for other, waiting in self._waiting.items():
            if other != tenant:
                tag, *order = self._place(other)
                # At equal tags, who was served less recently goes first; a higher tag today
                # means that we will have been served in the round before.
                first = tag > mine[0] or (tag == mine[0] and order < list(mine[1:]))
                served += min(max(mine[0] + rounds - tag + first, 0), waiting)
        return served

    def _place(self, tenant: str) -> tuple[int, int, str]:
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
