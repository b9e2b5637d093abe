"""Whose turn it is: tenants side by side, inside one and over several workers."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.pacing import Pacer
from gateway.store.redis import RedisStore
from tests.contract.stores import PATIENT
from tests.unit.pacing.callers import (
    US,
    Callers,
    Rates,
    Served,
    interval_s,
    memory_store,
    pacer_over,
)
from tests.virtual_time import in_virtual_time

RATE = 20.0


def join_500_5_and_1(groups: list[Callers]) -> None:
    """Spread over the workers; the last one has the call that stands alone."""
    for number in range(500):
        groups[number % len(groups)].wait("big")
    for number in range(5):
        groups[number % len(groups)].wait("five")
    groups[-1].wait("one")


async def first_served(groups: list[Callers], calls: int) -> list[Served]:
    """Over all workers."""
    while sum(len(group.served) for group in groups) < calls:  # noqa: ASYNC110 - many events
        await asyncio.sleep(0.01)
    return sorted(one for group in groups for one in group.served)[:calls]


def workers_in_one_store(workers: int) -> list[Callers]:
    store = memory_store()
    return [Callers(pacer_over(store, RATE, worker=f"w{number}")) for number in range(workers)]


IDEAL = ["big", "five", "one", *["big", "five"] * 4, *["big"] * 14]


@pytest.mark.parametrize("workers", [1, 2, 3])
@in_virtual_time
async def test_tenants_take_turns(workers: int) -> None:
    """500, 5 and 1 calls wait: the small ones are served as if the 500 were one."""
    groups = workers_in_one_store(workers)
    join_500_5_and_1(groups)
    served = await first_served(groups, 25)
    assert [one.tenant for one in served] == IDEAL
    times = [one.at for one in served]
    assert times == pytest.approx([number * interval_s(RATE) for number in range(25)], abs=US)


@pytest.mark.parametrize("workers", [5, 8])
@in_virtual_time
async def test_among_many_workers_no_call_is_more_than_a_slot_later(workers: int) -> None:
    """One that is far down in the order may find the slot taken that it was to have."""
    groups = workers_in_one_store(workers)
    join_500_5_and_1(groups)
    order = [one.tenant for one in await first_served(groups, 25)]
    for small in ("five", "one"):
        ideal = [place for place, tenant in enumerate(IDEAL) if tenant == small]
        places = [place for place, tenant in enumerate(order) if tenant == small]
        assert all(place <= best + 1 for place, best in zip(places, ideal, strict=True))


@in_virtual_time
async def test_workers_take_turns_inside_a_tenant() -> None:
    """One with 100 calls keeps another with 3 waiting for a turn each."""
    store = memory_store()
    many, few = (Callers(pacer_over(store, RATE, worker=name)) for name in ("many", "few"))
    many.wait("acme", 100)
    few.wait("acme", 3)
    await few.until_served(3)
    assert len(many.served) <= 4


@in_virtual_time
async def test_a_tenant_that_comes_back_has_saved_up_nothing() -> None:
    callers = Callers(pacer_over(memory_store(), RATE))
    callers.wait("idle")
    callers.wait("busy", 40)
    await callers.until_served(20)
    callers.wait("idle", 5)
    served = await callers.until_served(30)
    assert Counter(served[20:]) == {"busy": 5, "idle": 5}
    assert "idle" not in served[2:20]


@pytest.mark.slow
async def test_tenants_take_turns_over_redis(redis_url: str) -> None:
    """In real time, over two workers: within two slots of the ideal order, and never too fast."""
    stores = [RedisStore(redis_url, timeouts=PATIENT) for _ in range(2)]
    groups = [
        Callers(Pacer(store, Rates(intl=RATE), worker=f"w{number}"))
        for number, store in enumerate(stores)
    ]
    join_500_5_and_1(groups)
    served = await first_served(groups, 25)
    for group in groups:
        await group.stop()
    for store in stores:
        await store.aclose()
    order = [one.tenant for one in served]
    assert order.count("one") == 1
    assert order.index("one") <= IDEAL.index("one") + 2
    assert [place <= 10 + 2 for place, name in enumerate(order) if name == "five"] == [True] * 5
    assert (len(served) - 1) / (served[-1].at - served[0].at) <= RATE
