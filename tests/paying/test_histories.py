"""Random histories of whole gateways: a part of those that bench/histories.py goes through."""

from __future__ import annotations

import pytest

from tests.paying.judge import batch_of, judge
from tests.virtual_redis import RedisSharedStore

pytestmark = pytest.mark.slow

FOUND = [453]
"""Histories that have found a defect; each names it."""


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_histories_in_memory(first: int) -> None:
    """Payments ≤ intents; paid = booked + doubtful = recorded; nothing is left, or kept of the
    refused.
    """
    assert judge(range(first, first + 20))["calls"] > 50


@pytest.mark.parametrize("number", FOUND)
def test_a_history_that_found_a_defect(number: int) -> None:
    """453: what was told to the store late, just before a failover, was never told again."""
    judge(batch_of(number))


def test_histories_over_redis() -> None:
    """Dozens, in virtual time too."""
    with RedisSharedStore() as store:
        assert judge(range(1000, 1024), store)["calls"] > 50
