"""Never more than the limit in any 60 seconds, over four workers of one Redis, at every rate.

`tests/contract/test_store_time_model.py` tries every kind of burst on every store; here the ledgers
of four workers share one, and the bound is stated: at most the limit in any 60 seconds, and under
load never less than the limit in any 61.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from gateway.observability.context import ClientOutcome
from gateway.results import Ledger
from gateway.store.limits import Limits
from gateway.store.redis import RedisStore, Timeouts
from tests.contract.stores import Clock
from tests.figures import Figure
from tests.unit.ledgers import Request, unshared

LIMIT = 20
MINUTES = 4
WORKERS = 4
PATIENT = Timeouts(connect_s=5.0, command_s=5.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def workers(redis_url: str, clock: Clock) -> AsyncIterator[list[Ledger]]:
    stores = [
        RedisStore(redis_url, timeouts=PATIENT, clock_us=clock.microseconds) for _ in range(WORKERS)
    ]
    yield [Ledger(store, worker=f"w{number}") for number, store in enumerate(stores)]
    for store in stores:
        await store.aclose()


async def admitted(workers: list[Ledger], clock: Clock, gaps_s: list[float]) -> list[float]:
    """When requests that come at such distances, at one worker after the other, are let in."""
    times = []
    for number, gap_s in zip(count(), gaps_s):
        clock.advance(gap_s)
        wanted = unshared(f"r{number}", retry_key=None)
        request = Request(workers[number % WORKERS], wanted, Limits(requests_per_minute=LIMIT))
        leading = await request.enter()
        if request.verdict.allowed:
            times.append(clock.now)
            await leading.hand_over()
            await request.leave(ClientOutcome.ANSWERED)
    return times


def most_in(times: list[float], span_s: float) -> int:
    """In any span of time of that length."""
    return max(sum(start <= at < start + span_s for at in times) for start in times)


RATES = {"half": 0.5, "just": 1.0, "twice": 2.0, "ten times": 10.0}


@pytest.mark.parametrize("rate", RATES)
async def test_at_a_steady_rate(
    rate: str, workers: list[Ledger], clock: Clock, figure: Figure
) -> None:
    gap_s = 60 / (LIMIT * RATES[rate])
    gaps = [gap_s] * int(MINUTES * 60 / gap_s)
    times = await admitted(workers, clock, gaps)
    most = most_in(times, 60)
    figure(f"{rate} the limit: {len(times)} of {len(gaps)}, at most {most} in any 60 s")
    assert most <= LIMIT
    assert len(times) >= min(len(gaps) * 60 // 61, LIMIT * (MINUTES * 60 // 61)) - 1


async def test_in_bursts_at_the_edge_of_the_minute(
    workers: list[Ledger], clock: Clock, figure: Figure
) -> None:
    """Where a fixed window lets twice the limit through."""
    burst = [0.0] * LIMIT
    times = await admitted(workers, clock, [59.4, *burst, 0.7, *burst, 58.4, *burst, 2.0, *burst])
    figure(f"{len(times)} of {4 * LIMIT} in bursts, at most {most_in(times, 60)} in any 60 s")
    assert most_in(times, 60) == LIMIT
    assert len(times) >= 2 * LIMIT
