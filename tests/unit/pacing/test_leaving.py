"""Calls that stop waiting: no slot is lost with them, and nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable

import pytest

from gateway.pacing import NoSlot, Pacer, Slot
from gateway.pacing.pacer import Wait
from gateway.store.availability import StoreUnavailable
from gateway.store.pacing import PacedAccount, SlotRequest
from tests.unit.pacing.callers import (
    MODEL,
    US,
    Callers,
    faulty_store,
    interval_s,
    memory_store,
    now,
    pacer_over,
)
from tests.virtual_time import in_virtual_time


class HungUp(Exception):
    """Why a call's own `wait` ends."""


async def hang_up_with_the_slot(slot: asyncio.Future[Slot]) -> Slot:
    """Stop in the very moment in which the slot has come."""
    await slot
    raise HungUp


def cancelled_with_the_slot(slot: asyncio.Future[Slot]) -> Awaitable[Slot]:
    """Be cancelled after the slot has come and before the caller has seen it."""
    task = asyncio.current_task()
    assert task is not None
    slot.add_done_callback(lambda _: task.cancel())  # runs before the one that resumes the task
    return slot


LAST_MOMENT = pytest.mark.parametrize(
    ("wait", "ended_by"),
    [(hang_up_with_the_slot, HungUp), (cancelled_with_the_slot, asyncio.CancelledError)],
)


@LAST_MOMENT
@in_virtual_time
async def test_a_slot_that_comes_as_its_call_ends_goes_to_the_next(
    wait: Wait, ended_by: type[BaseException]
) -> None:
    callers = Callers(pacer_over(memory_store(), rate=1.0))
    (first,) = callers.wait("acme", wait=wait)
    second, third = callers.wait("acme", 2)
    await callers.until_served(2)
    assert callers.times() == pytest.approx([0, interval_s(1.0)], abs=US)
    assert [task.done() for task in (first, second, third)] == [True] * 3
    with pytest.raises(ended_by):
        await first


@LAST_MOMENT
@in_virtual_time
async def test_a_slot_that_no_call_here_wants_goes_back_to_the_store(
    wait: Wait, ended_by: type[BaseException]
) -> None:
    """Another worker has it at once."""
    store = memory_store()
    callers = Callers(pacer_over(store, rate=1.0))
    results = await asyncio.gather(*callers.wait("acme", 3, wait=wait), return_exceptions=True)
    assert [type(result) for result in results] == [ended_by] * 3
    others = Callers(pacer_over(store, rate=1.0, worker="w2"))
    others.wait("acme")
    await others.until_served(1)
    assert now() == 0
    assert callers.pacer.waiting() == {MODEL: 0}


@in_virtual_time
async def test_a_cancelled_call_takes_no_slot() -> None:
    """Those behind it move up."""
    callers = Callers(pacer_over(memory_store(), rate=20.0))
    callers.wait("acme")
    doomed = callers.wait("acme", 20)
    callers.wait("acme")
    await asyncio.sleep(0.02)
    for task in doomed:
        task.cancel()
    await callers.until_served(2)
    assert callers.times() == pytest.approx([0, interval_s(20.0)], abs=US)


@in_virtual_time
async def test_a_wait_that_ends_before_it_began_leaves_the_queue() -> None:
    callers = Callers(pacer_over(memory_store()))

    async def gone_already(_: asyncio.Future[Slot]) -> Slot:
        raise HungUp

    (task,) = callers.wait("acme", wait=gone_already)
    with pytest.raises(HungUp):
        await task
    assert callers.pacer.waiting() == {MODEL: 0}


@in_virtual_time
async def test_a_wait_may_be_ended_through_its_future() -> None:
    """A client that leaves does it so; its place in the queue is then another's."""
    futures: list[asyncio.Future[Slot]] = []

    def remember(slot: asyncio.Future[Slot]) -> Awaitable[Slot]:
        futures.append(slot)
        return slot

    callers = Callers(pacer_over(memory_store(), rate=1.0))
    callers.wait("acme")
    (task,) = callers.wait("acme", wait=remember)
    callers.wait("acme")
    await asyncio.sleep(interval_s(1.0) / 2)
    futures[0].set_exception(HungUp())
    with pytest.raises(HungUp):
        await task
    assert callers.pacer.waiting() == {MODEL: 1}
    await callers.until_served(2)
    assert callers.times() == pytest.approx([0, interval_s(1.0)], abs=US)


async def hang_up_without_a_look(slot: asyncio.Future[Slot]) -> Slot:
    await asyncio.wait([slot])
    raise HungUp


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wait", "ended_by"),
    [(hang_up_without_a_look, HungUp), (cancelled_with_the_slot, asyncio.CancelledError)],
)
@in_virtual_time
async def test_a_call_that_ends_as_it_is_refused_leaves_no_exception_never_retrieved(
    wait: Wait, ended_by: type[BaseException]
) -> None:
    callers = Callers(pacer_over(memory_store(), rate=1.0))
    callers.wait("acme", 3)
    tasks = callers.wait("acme", within_s=0.5, wait=wait)
    await asyncio.wait(tasks)
    assert callers.pacer.waiting() == {MODEL: 2}
    callers.tasks.clear()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ended_by]
    del tasks, results
    gc.collect()  # only what is freed is reported, and what is reported fails this test


# --- what stays


async def refused(pacer: Pacer, within_s: float) -> weakref.ref[NoSlot]:
    try:
        await pacer.slot(MODEL, "acme", accounts=["intl"], deadline=now() + within_s)
    except NoSlot as late:
        return weakref.ref(late)
    raise AssertionError("there was a slot")


@in_virtual_time
async def test_a_refusal_is_freed_without_the_garbage_collector() -> None:
    """It holds the frames of the request, and a request its images."""
    callers = Callers(pacer_over(memory_store(), rate=0.1))
    callers.wait("acme", 2)
    await callers.until_served(1)
    gc.disable()
    try:
        late = await refused(callers.pacer, within_s=1.0)
        await asyncio.sleep(0)  # the loop's own callback holds it until then
        assert late() is None
    finally:
        gc.enable()


@in_virtual_time
async def test_the_queue_does_not_hold_what_a_call_ended_with() -> None:
    """A call with an earlier deadline still waits, so the later ones stay in the heap."""
    gone: list[weakref.ref[HungUp]] = []

    async def hang_up(slot: asyncio.Future[Slot]) -> Slot:
        error = HungUp()
        gone.append(weakref.ref(error))
        slot.set_exception(error)
        del error
        return await slot

    callers = Callers(pacer_over(memory_store(), rate=0.1))
    callers.wait("acme", 2, within_s=30)
    await callers.until_served(1)
    (task,) = callers.wait("acme", within_s=60, wait=hang_up)
    await asyncio.wait([task])
    assert isinstance(task.exception(), HungUp)
    callers.tasks.remove(task)
    del task
    gc.collect()
    assert gone[0]() is None


@in_virtual_time
async def test_nothing_runs_when_no_call_waits() -> None:
    """And the store has forgotten this worker."""
    store = faulty_store()
    callers = Callers(pacer_over(store, rate=1.0))
    await asyncio.gather(*callers.wait("acme", 3))
    doomed = callers.wait("acme", 3)
    await asyncio.sleep(0.3)
    for task in doomed:
        task.cancel()
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1
    request = SlotRequest(MODEL, "w2", (PacedAccount("intl", 1),), {"x": 2}, report=True)
    claimed = await store.claim(request)
    assert [share.worker for share in claimed.shares] == ["w2"]


@in_virtual_time
async def test_a_fault_in_the_store_fails_the_calls_that_wait() -> None:
    """They must not wait for ever for a task that is gone; the next ones work again."""
    store = faulty_store()
    callers = Callers(pacer_over(store))
    store.is_away = True  # and no fallback is given
    results = await asyncio.gather(*callers.wait("acme", 3), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 3
    assert len({id(result) for result in results}) == 3  # or one traceback would grow with each
    store.is_away = False
    await callers.wait("acme")[0]


@in_virtual_time
async def test_closing_ends_the_task_and_what_it_tells_the_store() -> None:
    callers = Callers(pacer_over(faulty_store(takes_s=1.0), rate=1.0))
    (task,) = callers.wait("acme")
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    await callers.pacer.aclose()
    assert len(asyncio.all_tasks()) == 1
