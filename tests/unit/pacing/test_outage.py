"""Pacing without the store: each worker by its share of the rate, until the store is back."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from structlog.testing import capture_logs

from gateway.pacing import LocalFallback
from gateway.store.availability import Share
from tests.faulty_store import FaultyStore
from tests.unit.pacing.callers import (
    MODEL,
    US,
    Callers,
    faulty_store,
    gaps,
    interval_s,
    memory_store,
    now,
    pacer_over,
)
from tests.virtual_time import in_virtual_time


def pair(store: FaultyStore, rate: float) -> list[Callers]:
    """Two workers, which know of each other and have a clock on the wall in common."""
    clock = asyncio.get_running_loop().time
    fallbacks = (
        LocalFallback(memory_store(), partial(Share, index, 2), clock) for index in range(2)
    )
    return [
        Callers(pacer_over(store, rate, worker=f"w{index}", fallback=fallback))
        for index, fallback in enumerate(fallbacks)
    ]


@in_virtual_time
async def test_without_the_store_the_workers_share_the_rate() -> None:
    """Together they keep to it, and out of each other's way by the clock on the wall."""
    store = faulty_store()
    store.is_away = True
    groups = pair(store, rate=20.0)
    for group in groups:
        group.wait("acme", 100)
    await asyncio.sleep(29.5 * interval_s(20.0))
    assert [group.pacer.degraded for group in groups] == [True, True]
    assert [len(group.served) for group in groups] == [15, 15]
    times = sorted(at for group in groups for at in group.times())
    assert times == pytest.approx([number * interval_s(20.0) for number in range(30)], abs=US)


@in_virtual_time
async def test_an_outage_makes_no_two_calls_too_close() -> None:
    """The store goes and comes back; each worker remembers the slots that it knew."""
    store = faulty_store()
    callers, _ = pair(store, rate=10.0)
    callers.wait("acme", 100)
    await callers.until_served(4)
    store.is_away = True
    await callers.until_served(7)
    was_degraded = callers.pacer.degraded
    store.is_away = False
    await callers.until_served(11)
    assert (was_degraded, callers.pacer.degraded) == (True, False)
    assert min(gaps(callers.times())) == pytest.approx(0.1, abs=US)


@in_virtual_time
async def test_an_outage_is_logged_when_it_begins_and_when_it_ends() -> None:
    store = faulty_store()
    callers, _ = pair(store, rate=10.0)
    with capture_logs() as logs:
        callers.wait("acme", 100)
        await callers.until_served(2)
        store.is_away = True
        await callers.until_served(6)
        store.is_away = False
        await callers.until_served(9)
    assert [(entry["event"], entry.get("cause")) for entry in logs] == [
        ("pacing_store_lost", "gone"),
        ("pacing_store_found", None),
    ]


@in_virtual_time
async def test_an_outage_that_nobody_waits_through_is_soon_forgotten() -> None:
    """As no call asks the store any more, nobody knows whether it is still away."""
    store = faulty_store()
    callers, _ = pair(store, rate=10.0)
    store.is_away = True
    callers.wait("acme")
    await callers.until_served(1)
    lost_at = now()
    await asyncio.sleep(6.0)
    assert callers.pacer.degraded
    await asyncio.sleep(lost_at + 6.0 + 0.2 - now())
    assert not callers.pacer.degraded


@in_virtual_time
async def test_a_store_that_has_forgotten_everything_gives_no_slot_too_early() -> None:
    """A worker tells it when the next slot was to be, to within the 50 ms that its way may take."""
    store = faulty_store()
    first, second = (Callers(pacer_over(store, rate=2.0, worker=name)) for name in ("w1", "w2"))
    first.wait("acme")
    await first.until_served(1)
    second.wait("acme")
    await asyncio.sleep(0.1)  # it has asked, and learned of the next slot
    store.lose_everything()
    second.wait("acme")
    await second.until_served(1)
    assert second.times() == pytest.approx([interval_s(2.0) - 0.05], abs=US)


@in_virtual_time
async def test_backing_off_without_the_store_holds_here() -> None:
    store = faulty_store()
    store.is_away = True
    callers = pair(store, rate=50.0)[0]
    await callers.pacer.back_off(MODEL, "intl", 0.3)
    callers.wait("acme")
    await callers.until_served(1)
    assert 0.3 <= callers.times()[0] <= 0.3 + 2 * interval_s(50.0)
