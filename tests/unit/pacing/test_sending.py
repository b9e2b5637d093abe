"""From a slot to the wire: calls sent late, never, on an account that hangs, by a stalled loop."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.pacing import Pacer, Slot
from gateway.pacing.scheduler import STUCK_S
from tests.unit.pacing.callers import (
    MODEL,
    US,
    Rates,
    faulty_store,
    interval_s,
    memory_store,
    now,
    pacer_over,
    take,
)
from tests.virtual_time import VirtualLoop, in_virtual_time


@in_virtual_time
async def test_a_call_keeps_its_distance_to_one_that_was_sent_late() -> None:
    """As a busy loop, or a new connection, makes it: the vendor counts when calls arrive."""
    pacer = pacer_over(memory_store(), rate=10.0)
    first, _ = await take(pacer)
    waiting = asyncio.create_task(take(pacer))
    await asyncio.sleep(0.06)
    pacer.sent(MODEL, first)
    second, second_at = await waiting
    pacer.sent(MODEL, second)
    _, third_at = await take(pacer)
    assert second_at == pytest.approx(0.06 + interval_s(10.0), abs=US)
    assert third_at == pytest.approx(second_at + interval_s(10.0), abs=US)


@in_virtual_time
async def test_the_next_slot_waits_until_a_call_that_was_hardly_late_is_far_enough_away() -> None:
    """Nearer than that no two calls of one worker come, not even by the time that is tolerated."""
    pacer = pacer_over(memory_store(), rate=10.0)
    first, _ = await take(pacer)
    waiting = asyncio.create_task(take(pacer))
    await asyncio.sleep(0.0119)
    pacer.sent(MODEL, first)
    _, second_at = await waiting
    assert second_at == pytest.approx(0.0119 + 0.1, abs=US)


@in_virtual_time
async def test_a_slot_that_is_held_back_comes_as_soon_as_it_may() -> None:
    """It was claimed before the late call was on its way, 10 ms before it was due."""
    pacer = pacer_over(memory_store(), rate=10.0)
    first, _ = await take(pacer)
    waiting = asyncio.create_task(take(pacer))
    await asyncio.sleep(0.095)
    pacer.sent(MODEL, first)
    _, second_at = await waiting
    assert second_at == pytest.approx(0.095 + 0.1, abs=US)


@in_virtual_time
async def test_a_call_that_is_never_sent_holds_the_next_one_up_for_two_intervals() -> None:
    pacer = pacer_over(memory_store(), rate=10.0)
    await take(pacer)
    _, second_at = await take(pacer)
    assert second_at == pytest.approx(0.2, abs=US)


@in_virtual_time
async def test_the_end_of_an_earlier_call_says_nothing_of_a_later_one() -> None:
    pacer = pacer_over(memory_store(), rate=10.0)
    first, _ = await take(pacer)
    pacer.sent(MODEL, first)
    _, second_at = await take(pacer)
    pacer.sent(MODEL, first)
    _, third_at = await take(pacer)
    assert third_at == pytest.approx(second_at + 0.2, abs=US)


@in_virtual_time
async def test_other_workers_keep_their_distance_to_a_call_that_was_sent_late() -> None:
    store = memory_store()
    pacer, other = pacer_over(store, rate=5.0), pacer_over(store, rate=5.0, worker="w2")
    first, _ = await take(pacer)
    elsewhere = asyncio.create_task(take(other))
    await asyncio.sleep(0.15)
    pacer.sent(MODEL, first)
    _, at = await elsewhere
    assert at == pytest.approx(0.15 + interval_s(5.0), abs=US)


@in_virtual_time
async def test_a_call_that_is_hardly_late_moves_nothing() -> None:
    """3 % of the distance, or 12 ms where that is no more than a quarter of it, are in time."""
    store = memory_store()
    pacer, other = pacer_over(store, rate=5.0), pacer_over(store, rate=5.0, worker="w2")
    first, _ = await take(pacer)
    elsewhere = asyncio.create_task(take(other))
    await asyncio.sleep(0.0119)
    pacer.sent(MODEL, first)
    _, at = await elsewhere
    assert at == pytest.approx(interval_s(5.0), abs=US)


async def hand_out(pacer: Pacer, until: float, stuck: list[Slot]) -> Counter[str]:
    """The accounts of the slots that come until then; those of `hangs` do not get away."""
    came = Counter[str]()
    while now() < until:
        slot, _ = await take(pacer, "hangs", "good")
        came[slot.account] += 1
        if slot.account == "hangs":
            stuck.append(slot)
        else:
            pacer.sent(MODEL, slot)
    return came


@in_virtual_time
async def test_calls_that_hang_on_their_way_leave_the_other_accounts_alone() -> None:
    """As while one account's connections hang; once they are over it is used again."""
    pacer = Pacer(memory_store(), Rates(hangs=20.0, good=20.0), worker="w1")
    stuck: list[Slot] = []
    first = await hand_out(pacer, STUCK_S + 0.1, stuck)
    then = await hand_out(pacer, now() + 19.5 * interval_s(20.0), stuck)
    for slot in stuck:
        pacer.sent(MODEL, slot)
    after = await hand_out(pacer, now() + 0.3, stuck)
    assert first["hangs"] > 0
    assert then == {"good": 20}
    assert after["hangs"] > 0


@in_virtual_time
async def test_an_account_that_hangs_no_longer_is_used_at_once() -> None:
    """Not only when the next slot of the others comes."""
    pacer = Pacer(memory_store(), Rates(hangs=20.0, good=0.1), worker="w1")
    stuck, _ = await take(pacer, "hangs")
    pacer.sent(MODEL, (await take(pacer, "good"))[0])
    await asyncio.sleep(STUCK_S + 0.1)
    waiting = asyncio.create_task(take(pacer, "hangs", "good"))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    pacer.sent(MODEL, stuck)
    slot, at = await waiting
    assert slot.account == "hangs"
    assert at < 2.0  # 10 s before the slot of `good`


@in_virtual_time
async def test_an_account_that_is_broken_is_not_taken_for_one_that_hangs() -> None:
    """Better to wait for what hangs than to be refused."""
    rates = Rates(hangs=20.0, good=20.0)
    pacer, stuck = Pacer(memory_store(), rates, worker="w1"), list[Slot]()
    await hand_out(pacer, STUCK_S + 0.1, stuck)
    rates.broken.add("good")
    then = await hand_out(pacer, now() + 0.5, stuck)
    assert then["hangs"] > 0
    assert then["good"] <= 1


@in_virtual_time
async def test_a_slot_that_a_stalled_loop_misses_is_claimed_again() -> None:
    """By then another worker may have had the next one, and its call be under way."""
    store, loop = faulty_store(), asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    pacer = pacer_over(store, rate=10.0)
    pacer.sent(MODEL, (await take(pacer))[0])
    late = asyncio.create_task(take(pacer))
    await asyncio.sleep(0.1)
    claims = store.asked["claim"]  # 3 ms before the slot it has been claimed
    loop.now += 0.2  # the stall itself
    _, at = await late
    assert store.asked["claim"] == claims + 1
    assert store.asked["give_back"] == 1
    assert at == pytest.approx(0.3, abs=US)


@in_virtual_time
async def test_a_slot_is_announced_two_seconds_before_it_comes() -> None:
    """So that a connection stands ready; not so long before that it would be closed again."""
    announced: list[tuple[float, str, str]] = []
    pacer = pacer_over(
        memory_store(),
        rate=0.45,
        prepare=lambda model, account: announced.append((now(), model, account)),
    )
    pacer.sent(MODEL, (await take(pacer))[0])
    _, came = await take(pacer)
    assert {(model, account) for _, model, account in announced} == {(MODEL, "intl")}
    assert came - announced[0][0] == pytest.approx(2.0, abs=US)
