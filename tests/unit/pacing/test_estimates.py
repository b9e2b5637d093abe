"""When a slot is expected: by table, and held against the order in which slots were given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pacing.wait_queue import WaitEstimate, slot_at
from gateway.store.memory import MemoryStore
from gateway.store.pacing import ClaimResult, PacedAccount, QueueShare, SlotRequest


def estimate(own: Mapping[str, int], shares: tuple[QueueShare, ...] = ()) -> WaitEstimate:
    return WaitEstimate(ClaimResult(None, 0, {}, 0, shares), "me", own)


@pytest.mark.parametrize(
    ("own", "shares", "position", "before"),
    [
        ({"us": 1}, (), 0, 0),
        ({"us": 9}, (), 8, 8),
        # Another tenant is served once per round, as long as it waits, first where it is first.
        ({"us": 9}, (QueueShare("a", "w", 500, 0, 0),), 4, 9),
        ({"us": 9}, (QueueShare("a", "w", 2, 0, 0),), 4, 6),
        ({"us": 9}, (QueueShare("z", "w", 500, 0, 0),), 4, 8),
        # We have been served before it: it is owed a turn more.
        ({"us": 9}, (QueueShare("us", "me", 9, 1, 5), QueueShare("z", "w", 500, 0, 0)), 0, 1),
        ({"us": 9}, (QueueShare("us", "me", 9, 0, 0), QueueShare("a", "w", 500, 1, 5)), 0, 0),
        # Our own tenant waits elsewhere too: the workers take turns.
        ({"us": 9}, (QueueShare("us", "w", 500, 0, 0),), 4, 9),
        ({"us": 9}, (QueueShare("us", "w", 2, 0, 0),), 4, 6),
    ],
)
def test_who_goes_before(
    own: Mapping[str, int], shares: tuple[QueueShare, ...], position: int, before: int
) -> None:
    assert estimate(own, shares).before("us", position) == before


class Turns:
    """A store that gives one slot a second to one worker, whose queue is known."""

    def __init__(self, waiting: Mapping[str, int]) -> None:
        self.now = 0.0
        self.store = MemoryStore(lambda: self.now)
        self.waiting = dict(waiting)

    def look(self) -> ClaimResult:
        """Who waits, without a slot to be had yet."""
        return self._claim()

    def serve(self) -> str:
        """The tenant of the next slot."""
        self.now += 1
        grant = self._claim().grant
        assert grant is not None
        self.waiting[grant.tenant] -= 1
        return grant.tenant

    def _claim(self) -> ClaimResult:
        waiting = {tenant: calls for tenant, calls in self.waiting.items() if calls}
        claim = SlotRequest("m", "me", (PacedAccount("a", 1_000_000),), waiting, report=True)
        return asyncio.run(self.store.claim(claim))


CALLS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4), min_size=1)


@given(first=CALLS, served=st.integers(1, 6), then=CALLS)
def test_the_order_is_foreseen(
    first: Mapping[str, int], served: int, then: Mapping[str, int]
) -> None:
    """Of every call that waits, with tenants that have been served before and others that join."""
    turns = Turns(first)
    for _ in range(min(served, sum(first.values()))):
        turns.serve()
    for tenant, calls in then.items():
        turns.waiting[tenant] = turns.waiting.get(tenant, 0) + calls
    foreseen = WaitEstimate(turns.look(), "me", turns.waiting)
    order = [turns.serve() for _ in range(sum(turns.waiting.values()))]
    for tenant in set(order):
        places = [place for place, other in enumerate(order) if other == tenant]
        assert [foreseen.before(tenant, n) for n in range(len(places))] == places


@pytest.mark.parametrize(
    ("schedule", "number", "at"),
    [
        ([(10.0, 1.0)], 0, 10.0),
        ([(3.0, 1.0)], 0, 5.0),  # long free: now
        ([(10.0, 1.0)], 3, 13.0),
        ([(10.0, 1.0), (10.5, 1.0)], 3, 11.5),
        ([(10.0, 1.0), (100.0, 1.0)], 3, 13.0),
        ([(5.0, 30.0), (5.0, 0.5)], 4, 6.5),
    ],
)
def test_when_a_slot_comes(schedule: list[tuple[float, float]], number: int, at: float) -> None:
    assert slot_at(schedule, number, now=5.0) == pytest.approx(at, abs=0.002)
