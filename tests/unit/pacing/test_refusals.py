"""Calls that are refused: too late for their deadline, or one too many."""

from __future__ import annotations

import asyncio

import pytest

from gateway.config import Pacing
from gateway.pacing import QueueFull, SlotTooLate
from tests.unit.pacing.callers import (
    US,
    Callers,
    interval_s,
    memory_store,
    now,
    pacer_over,
    refusal,
)
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_a_slot_that_comes_too_late_is_refused_at_once_with_the_true_wait() -> None:
    callers = Callers(pacer_over(memory_store(), rate=2.0))
    callers.wait("acme", 5)
    await callers.until_served(1)
    refused = await refusal(callers.wait("acme", within_s=1.0)[0])
    assert isinstance(refused, SlotTooLate)
    assert now() < 0.01  # the claims of calls that join are at least 5 ms apart
    assert now() + refused.retry_after_s == pytest.approx(5 * interval_s(2.0), abs=US)


@pytest.mark.parametrize("spare_s", [-0.1, -US, US, 0.1])
@in_virtual_time
async def test_a_call_is_admitted_exactly_if_its_slot_comes_in_time(spare_s: float) -> None:
    """That is, 30 ms before its deadline; another tenant takes turns with the four before it."""
    callers = Callers(pacer_over(memory_store(), rate=20.0))
    callers.wait("acme", 4)
    callers.wait("other", 30)
    slot_at = 8 * interval_s(20.0)
    (task,) = callers.wait("acme", within_s=slot_at + 0.03 + spare_s)
    if spare_s < 0:
        refused = await refusal(task)
        assert now() < 0.01
        assert now() + refused.retry_after_s == pytest.approx(slot_at, abs=US)
    else:
        await task
        assert now() == pytest.approx(slot_at, abs=US)


@in_virtual_time
async def test_a_call_is_refused_at_its_deadline_when_others_came_between() -> None:
    """Its slot was in time when it joined; the turns of newcomers made it late."""
    callers = Callers(pacer_over(memory_store(), rate=20.0))
    callers.wait("acme", 3)
    late = callers.wait("acme", within_s=0.2)[0]
    await asyncio.sleep(0.03)
    for number in range(20):
        callers.wait(f"t{number}")
    refused = await refusal(late)
    assert isinstance(refused, SlotTooLate)
    assert now() == pytest.approx(0.2, abs=US)
    assert refused.retry_after_s > 0


@in_virtual_time
async def test_a_request_of_many_calls_is_refused_whole() -> None:
    """Ten slots by the deadline, or none taken; what comes behind it is served in time."""
    callers = Callers(pacer_over(memory_store(), rate=20.0))
    tasks = callers.wait_for_all("acme", 10, within_s=0.3)
    (single,) = callers.wait("acme", within_s=0.3)
    refused = [await refusal(task) for task in tasks]
    assert [type(one) for one in refused] == [SlotTooLate] * 10
    assert await single == "intl"
    assert callers.times() == pytest.approx([0], abs=US)


@in_virtual_time
async def test_a_request_of_many_calls_is_served_whole() -> None:
    callers = Callers(pacer_over(memory_store(), rate=20.0))
    tasks = callers.wait_for_all("acme", 10, within_s=9 * interval_s(20.0) + 0.03 + US)
    assert await asyncio.gather(*tasks) == ["intl"] * 10
    assert now() == pytest.approx(9 * interval_s(20.0), abs=US)


@pytest.mark.parametrize(
    ("bounds", "tenant", "ahead"),
    [(Pacing(waiting_per_tenant=3), "acme", 3), (Pacing(waiting_per_model=3), "other", 0)],
)
@in_virtual_time
async def test_a_full_queue_refuses_with_a_time_to_come_back(
    bounds: Pacing, tenant: str, ahead: int
) -> None:
    """The time at which the call would have had its slot, with so many of its tenant ahead."""
    callers = Callers(pacer_over(memory_store(), rate=2.0, bounds=bounds))
    callers.wait("acme")
    await callers.until_served(1)
    callers.wait("acme", 3)
    await asyncio.sleep(0.02)
    refused = await refusal(callers.wait(tenant)[0])
    assert isinstance(refused, QueueFull)
    assert now() + refused.retry_after_s == pytest.approx((1 + ahead) * interval_s(2.0), abs=US)


@in_virtual_time
async def test_one_tenants_full_queue_does_not_refuse_another() -> None:
    callers = Callers(pacer_over(memory_store(), bounds=Pacing(waiting_per_tenant=3)))
    callers.wait("acme", 3)
    await asyncio.sleep(0)
    await callers.wait("other")[0]
    assert callers.served[1].tenant == "other"
