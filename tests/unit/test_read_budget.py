"""What bodies may hold before their requests are admitted."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gateway.api.body import ReadBudget
from gateway.config import Reading
from gateway.domain.errors import RateLimited, ServiceUnavailable

LIMITS = Reading(tenant_bytes=100, worker_bytes=150, tenant_requests=2)


def test_a_tenant_is_held_to_its_own_bytes() -> None:
    """Over all its bodies, and with a word on when to come again."""
    budget = ReadBudget(LIMITS)
    with budget.begin("a") as first, budget.begin("a") as second, budget.begin("b") as other:
        first.add(60, more=False)
        with pytest.raises(RateLimited) as refused:
            second.add(41, more=False)
        other.add(60, more=False)

    assert refused.value.retry_after_s == 1


def test_all_tenants_together_are_held_to_the_worker_s() -> None:
    budget = ReadBudget(LIMITS)
    with budget.begin("a") as first, budget.begin("b") as second:
        first.add(100, more=False)
        with pytest.raises(ServiceUnavailable) as refused:
            second.add(51, more=False)

    assert refused.value.retry_after_s == 1


def test_a_tenant_is_held_to_so_many_unfinished_bodies() -> None:
    """Those that have come whole are not counted: any number may come at once."""
    budget = ReadBudget(LIMITS)
    with ExitStack() as stack:
        whole = [stack.enter_context(budget.begin("a")) for _ in range(20)]
        for each in whole:
            each.add(1, more=False)
        slow = [stack.enter_context(budget.begin("a")) for _ in range(3)]
        for each in slow[:2]:
            each.add(1, more=True)
            each.add(1, more=True)
        with pytest.raises(RateLimited):
            slow[2].add(1, more=True)


def test_what_was_read_is_given_back() -> None:
    """Also by one that was refused, and nothing is remembered of a tenant that holds nothing."""
    budget = ReadBudget(LIMITS)
    for _ in range(5):
        with budget.begin("a") as reading:
            reading.add(90, more=True)
            with pytest.raises(RateLimited):
                reading.add(90, more=True)

    assert (budget._all_bytes, budget._bytes, budget._unfinished) == (0, {}, {})
