"""How often calls start: an account's rate, several accounts together, back-off."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.pacing import Pacer
from tests.unit.pacing.callers import (
    MODEL,
    US,
    Callers,
    Rates,
    faulty_store,
    interval_s,
    memory_store,
    now,
    pacer_over,
    take,
)
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_an_unlimited_account_is_not_paced() -> None:
    """The store is not even asked; the first of several takes all."""
    store = faulty_store()
    pacer = Pacer(store, Rates(slow=1.0, one=None, two=None), worker="w1")
    slots = [(await take(pacer, "slow", "one", "two"))[0] for _ in range(4)]
    assert [slot.account for slot in slots] == ["one"] * 4
    assert not store.asked
    assert now() == 0


@in_virtual_time
async def test_calls_start_at_the_accounts_rate() -> None:
    """Less the headroom of 3 %: never faster, and at least 95 % of it."""
    callers = Callers(pacer_over(memory_store(), rate=20.0))
    callers.wait("acme", 40)
    await callers.until_served(40)
    assert callers.times() == pytest.approx([number * 0.0515 for number in range(40)], abs=US)


@pytest.mark.parametrize("takes_s", [0.0001, 0.001, 0.004, 0.008])
@in_virtual_time
async def test_the_way_to_the_store_costs_no_throughput(takes_s: float) -> None:
    """A slot is claimed so early that it is known by the time at which it comes."""
    callers = Callers(pacer_over(faulty_store(takes_s), rate=10.0))
    callers.wait("acme", 20)
    await callers.until_served(20)
    times = callers.times()
    # The first claim only measures the way; a slot counts from its arrival at the store.
    assert times[-1] - times[0] == pytest.approx(19 * interval_s(10.0), abs=takes_s + US)


@in_virtual_time
async def test_several_accounts_add_up() -> None:
    callers = Callers(Pacer(memory_store(), Rates(a=20.0, b=20.0), worker="w1"), ("a", "b"))
    callers.wait("acme", 42)
    await callers.until_served(42)
    assert Counter(callers.taken()) == {"a": 21, "b": 21}
    assert callers.times()[-1] == pytest.approx(20 * interval_s(20.0), abs=US)


@in_virtual_time
async def test_backing_off_pushes_the_next_slot_away() -> None:
    callers = Callers(pacer_over(memory_store()))
    await callers.pacer.back_off(MODEL, "intl", 0.3)
    callers.wait("acme")
    await callers.until_served(1)
    assert callers.times() == pytest.approx([0.3], abs=US)


@in_virtual_time
async def test_the_queue_is_visible() -> None:
    callers = Callers(pacer_over(memory_store(), rate=10.0))
    callers.wait("acme", 3)
    await callers.until_served(1)
    assert callers.pacer.waiting() == {MODEL: 2}
    await callers.until_served(3)
    assert callers.pacer.waiting() == {MODEL: 0}


@in_virtual_time
async def test_a_call_needs_an_account() -> None:
    pacer = pacer_over(memory_store())
    with pytest.raises(ValueError, match="account"):
        await pacer.slot(MODEL, "acme", accounts=[], deadline=0)
