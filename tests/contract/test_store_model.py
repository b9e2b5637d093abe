"""Random histories: the stores agree with each other, and no minute ever holds too much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.store.base import (
    Claim,
    Limits,
    LimitStatus,
    PacedAccount,
    Reservation,
    Settlement,
    Store,
    Verdict,
)
from tests.contract.stores import KINDS, NOON, Clock, ask, open_store

TENANTS = st.sampled_from(["acme", "other"])
IDS = st.integers(0, 12)
REDIS = [kind for kind in KINDS if kind != "memory"]
ABOUT_MS = 800
LEASE_MS = 30_500
"""Ends between the simulated seconds."""


class StoresAgree(RuleBasedStateMachine):
    """Whatever happens, each Redis and the memory store give the same answers."""

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.memory = open_store("memory", self.clock)
        self.redis = open_store(self.kind, self.clock)

    def both(self, operation: str, *args: Any) -> Any:
        one, other = (
            self.loop.run_until_complete(getattr(store, operation)(*args))
            for store in (self.memory, self.redis)
        )
        assert about(one) == pytest.approx(about(other), abs=ABOUT_MS)
        return one

    @initialize(
        rates=st.tuples(st.integers(1, 9), st.integers(1, 12)) | st.just((None, None)),
        concurrent=st.none() | st.integers(1, 5),
        budgets=st.tuples(st.integers(1, 40), st.integers(1, 60)) | st.just((None, None)),
    )
    def begin(
        self,
        rates: tuple[int | None, int | None],
        concurrent: int | None,
        budgets: tuple[int | None, int | None],
    ) -> None:
        self.limits = Limits(*rates, concurrent, *budgets)

    @rule(tenant=TENANTS, number=IDS, images=st.integers(0, 5), cost=st.integers(0, 9))
    def take(self, tenant: str, number: int, images: int, cost: int) -> None:
        self.both(
            "take",
            ask(number, self.limits, images=images, cost=cost, tenant=tenant, lease_ms=LEASE_MS),
        )

    @rule(tenant=TENANTS, number=IDS, images=st.integers(0, 6), cost=st.integers(0, 12))
    def release(self, tenant: str, number: int, images: int, cost: int) -> None:
        self.both("release", Settlement(tenant, f"r{number}", "m", images, cost, self.limits))

    @rule(tenant=TENANTS, numbers=st.sets(IDS, max_size=4))
    def renew(self, tenant: str, numbers: set[int]) -> None:
        leases = [Reservation(f"r{number}", "m", 1, 1) for number in sorted(numbers)]
        self.both("renew", tenant, leases, LEASE_MS)

    @rule(seconds=st.sampled_from([1, 2, 7, 29, 31, 59, 60, 61, 3600]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(days=st.integers(1, 40))
    def sleep_days(self, days: int) -> None:
        self.clock.advance(86_400 * days)

    @invariant()
    def they_agree_on_everything(self) -> None:
        if hasattr(self, "limits"):
            one, other = (
                self.loop.run_until_complete(store.usage("acme", self.limits))
                for store in (self.memory, self.redis)
            )
            assert (one.today, one.this_month) == (other.today, other.this_month)
            assert about(one.levels) == pytest.approx(about(other.levels), abs=ABOUT_MS)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.redis.aclose())
        self.loop.close()


def about(verdict: Verdict | None) -> list[float]:
    """A verdict as numbers; names and counts weighted so that only durations may differ a bit."""
    if verdict is None:
        return []
    exact: list[float] = [
        verdict.allowed,
        hash(verdict.reason) % 1000,
        verdict.retry_after_ms is None,
    ]
    durations: list[float] = [verdict.retry_after_ms or 0]
    for level in (verdict.requests, verdict.images, verdict.concurrent, verdict.day, verdict.month):
        exact += _counts(level)
        durations.append(level.reset_ms if level else 0)
    return [value * 1e6 for value in exact] + durations


def _counts(level: LimitStatus | None) -> list[float]:
    return [level.limit, level.remaining] if level else [-1, -1]


@pytest.mark.parametrize("kind", REDIS)
def test_redis_decides_as_memory_does(kind: str) -> None:
    machine: Any = type("Machine", (StoresAgree,), {"kind": kind})
    run = machine.TestCase
    run.settings = settings(
        max_examples=40,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run().runTest()


@pytest.mark.parametrize("kind", REDIS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["w1", "w2", "w3"]),
            st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), max_size=4),
            st.sampled_from([0.4, 0.8, 1.2, 16.4]),
        ),
        max_size=25,
    )
)
def test_redis_gives_slots_as_memory_does(
    kind: str, steps: list[tuple[str, dict[str, int], float]]
) -> None:
    """On a beat that meets slots in the middle of the grace, never where a moment decides."""
    clock = Clock()
    accounts = (PacedAccount("x", 400_000), PacedAccount("y", 1_000_000))

    async def play(store: Store) -> Iterator[object]:
        clock.now = NOON
        answers = []
        for worker, waiting, pause in steps:
            clock.advance(pause)
            turn = await store.claim(Claim("m", worker, accounts, waiting, report=True))
            answers.append(
                (
                    turn.grant and (turn.grant.tenant, turn.grant.account),
                    turn.virtual_time,
                    sorted(
                        (flow.tenant, flow.worker, flow.waiting, flow.tag, flow.served)
                        for flow in turn.flows
                    ),
                )
            )
        await store.aclose()
        return iter(answers)

    one = list(asyncio.run(play(open_store("memory", clock))))
    other = list(asyncio.run(play(open_store(kind, clock))))
    assert one == other


# --- the sliding minute


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    limit=st.integers(1, 12),
    bursts=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 0.999, 1.0, 13.0, 29.5, 58.9, 59.9, 60.0, 60.9, 61.0]),
            st.integers(1, 15),
        ),
        max_size=30,
    ),
)
def test_no_sliding_minute_holds_more_than_the_limit(
    kind: str, limit: int, bursts: list[tuple[float, int]]
) -> None:
    """Bursts at the edges of seconds and minutes, over many simulated minutes."""
    admitted = asyncio.run(admissions(kind, limit, bursts))
    assert most_in_a_minute(admitted) <= limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_second", [0.5, 1, 2, 5, 20])
def test_a_steady_load_gets_the_limit_and_no_more(kind: str, per_second: float) -> None:
    """Three simulated minutes at each rate: the limit in every 61 seconds, where asked for."""
    limit = 60
    steps = [(1 / per_second, 1)] * round(180 * per_second)
    admitted = asyncio.run(admissions(kind, limit, steps))
    assert most_in_a_minute(admitted) <= limit
    expected = min(limit, 61 * per_second * 0.95)
    assert sum(at < NOON + 61 for at, _ in admitted) >= expected - 1
    assert len(admitted) >= min(len(steps), 2 * limit)


async def admissions(
    kind: str, limit: int, bursts: list[tuple[float, int]]
) -> list[tuple[float, float]]:
    """When requests were admitted: not before, not after; a server's clock goes on meanwhile."""
    clock = Clock()
    store = open_store(kind, clock)
    limits = Limits(requests_per_minute=limit)
    admitted = []
    for number, (pause, size) in enumerate(bursts):
        clock.advance(pause)
        asks = [ask(f"{number}-{one}", limits) for one in range(size)]
        started = time.monotonic()
        verdicts = await asyncio.gather(*(store.take(one) for one in asks))
        took = 0 if kind == "memory" else time.monotonic() - started
        allowed = sum(verdict.allowed for verdict in verdicts)
        admitted += [(clock.now, clock.now + took)] * allowed
    await store.aclose()
    return admitted


def most_in_a_minute(admitted: list[tuple[float, float]]) -> int:
    """The most that were certainly within 60 seconds."""
    return max(
        (
            sum(first <= other and latest < first + 60 for other, latest in admitted)
            for first, _ in admitted
        ),
        default=0,
    )
