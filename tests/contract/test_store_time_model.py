"""Random beats: each Redis gives slots as memory does, and no minute ever holds too much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.store import Store
from gateway.store.limits import Limits
from gateway.store.pacing import PacedAccount, SlotRequest
from tests.contract.stores import KINDS, NOON, Clock, ask, open_store, take

REDIS = [kind for kind in KINDS if kind != "memory"]


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
            turn = await store.claim(SlotRequest("m", worker, accounts, waiting, report=True))
            answers.append(
                (
                    turn.grant and (turn.grant.tenant, turn.grant.account),
                    turn.virtual_time,
                    sorted(
                        (share.tenant, share.worker, share.waiting, share.start_tag, share.served)
                        for share in turn.shares
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_second", [0.5, 1, 2, 5, 20])
def test_a_steady_load_gets_the_limit_and_no_more(kind: str, per_second: float) -> None:
    """Three simulated minutes at each rate: the limit in every 61 seconds, where asked for."""
    limit = 60
    steps = [(1 / per_second, 1)] * round(180 * per_second)
    admitted = asyncio.run(admissions(kind, limit, steps))
    assert most_in_a_minute(admitted) <= limit
    expected = min(limit, 61 * per_second * 0.95)
    assert sum(at < NOON + 61 for at in admitted) >= expected - 1
    assert len(admitted) >= min(len(steps), 2 * limit)


async def admissions(kind: str, limit: int, bursts: list[tuple[float, int]]) -> list[float]:
    """When requests were admitted."""
    clock = Clock()
    store = open_store(kind, clock)
    limits = Limits(requests_per_minute=limit)
    admitted: list[float] = []
    for number, (pause, size) in enumerate(bursts):
        clock.advance(pause)
        asks = [ask(f"{number}-{one}", limits) for one in range(size)]
        verdicts = await asyncio.gather(*(take(store, one) for one in asks))
        admitted += [clock.now] * sum(verdict.allowed for verdict in verdicts)
    await store.aclose()
    return admitted


def most_in_a_minute(admitted: list[float]) -> int:
    return max((sum(first <= at < first + 60 for at in admitted) for first in admitted), default=0)
