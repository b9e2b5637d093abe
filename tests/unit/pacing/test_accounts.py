"""Which account a slot is on: while breakers open and close, and the configuration changes."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.domain.errors import UpstreamRefused
from gateway.pacing import Pacer
from tests.unit.pacing.callers import US, Callers, Rates, interval_s, memory_store
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_an_account_that_is_broken_meanwhile_is_not_waited_for() -> None:
    """The breaker opens while calls wait for that account."""
    rates = Rates(a=20.0, b=20.0)
    callers = Callers(Pacer(memory_store(), rates, worker="w1"), ("a", "b"))
    callers.wait("acme", 10)
    await callers.until_served(2)
    rates.broken.add("a")
    await callers.until_served(10)
    assert callers.taken() == ["a"] + ["b"] * 9
    assert callers.times()[-1] == pytest.approx(8 * interval_s(20.0), abs=US)


@in_virtual_time
async def test_an_account_that_is_back_serves_those_who_came_while_it_rested() -> None:
    """The earliest slot wins, whichever was the earliest when they joined."""
    rates = Rates(fast=20.0, slow=0.5)
    rates.broken.add("fast")
    callers = Callers(Pacer(memory_store(), rates, worker="w1"), ("fast", "slow"))
    callers.wait("acme", 10)
    await callers.until_served(1)
    rates.broken.clear()
    callers.wait("other")
    await callers.until_served(11)
    assert callers.taken() == ["slow"] + ["fast"] * 10
    assert callers.times()[-1] < 10 * interval_s(20.0)


@in_virtual_time
async def test_a_waiter_gets_only_an_account_that_it_would_take() -> None:
    """A retry that must not meet the same account again."""
    pacer = Pacer(memory_store(), Rates(a=50.0, b=50.0), worker="w1")
    either, only_b = Callers(pacer, ("a", "b")), Callers(pacer, ("b",))
    either.wait("acme", 10)
    only_b.wait("acme", 5)
    await only_b.until_served(5)
    await either.until_served(10)
    assert set(only_b.taken()) == {"b"}
    assert set(either.taken()) == {"a", "b"}


# --- the configuration


@in_virtual_time
async def test_those_who_wait_take_the_accounts_that_there_are_now() -> None:
    """One is renamed, and one is added, which takes its share."""
    rates = Rates(old=20.0)
    callers = Callers(Pacer(memory_store(), rates, worker="w1"), ("old",))
    callers.wait("acme", 20)
    await callers.until_served(2)
    rates.rates = {"new": 20.0, "more": 20.0}
    callers.pacer.accounts_changed()
    await callers.until_served(20)
    assert Counter(callers.taken()) == {"old": 2, "new": 9, "more": 9}


@in_virtual_time
async def test_a_call_keeps_those_of_its_accounts_that_are_left() -> None:
    rates = Rates(a=20.0, b=20.0)
    callers = Callers(Pacer(memory_store(), rates, worker="w1"), ("a", "b"))
    callers.wait("acme", 10)
    await callers.until_served(2)
    del rates.rates["a"]
    callers.pacer.accounts_changed()
    await callers.until_served(10)
    assert callers.taken() == ["a"] + ["b"] * 9


@in_virtual_time
async def test_calls_that_no_account_is_left_for_are_refused() -> None:
    rates = Rates(only=5.0)
    callers = Callers(Pacer(memory_store(), rates, worker="w1"), ("only",))
    callers.wait("acme", 4)
    await callers.until_served(1)
    rates.rates = {}
    callers.pacer.accounts_changed()
    results = await asyncio.gather(*callers.tasks[1:], return_exceptions=True)
    assert [type(result) for result in results] == [UpstreamRefused] * 3
