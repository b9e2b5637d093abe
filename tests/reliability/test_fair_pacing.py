"""Three tenants with 500, 5 and 1 waiting requests on an account that takes two calls a second."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from tests.figures import Figure
from tests.reliability.pacing import (
    RATE,
    SLOT_S,
    WAITING,
    Run,
    alone,
    ideal_turns,
    replicas,
    run,
)

pytestmark = pytest.mark.timing

WINDOW_S = 12.0
"""Of 250 s that all of them would take; bench/reliability_pacing.py waits for the end."""
JITTER_S = 0.3


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """One gateway alone, and two of two workers over a Redis; at the same time, to save it."""

    async def both() -> list[Run]:
        with ExitStack() as stack:
            starting = [asyncio.to_thread(start, stack) for start in (alone, replicas)]
            setups = await asyncio.gather(*starting)
            return list(await asyncio.gather(*(run(*setup, WINDOW_S) for setup in setups)))

    return dict(zip(["one gateway", "two replicas"], asyncio.run(both()), strict=True))


@pytest.fixture(params=["one gateway", "two replicas"])
def seen(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    found: Run = runs[request.param]
    return found


def test_the_vendor_refuses_nothing(seen: Run) -> None:
    assert {call.status for call in seen.calls} == {200}


def test_the_rate_is_used(seen: Run, figure: Figure) -> None:
    figure(f"{seen.pace():.3f} calls a second of {RATE:g}: {seen.pace() / RATE:.1%}")
    assert 0.95 * RATE <= seen.pace() <= RATE


@pytest.mark.parametrize("tenant", ["some", "one"])
def test_a_small_tenant_waits_for_its_turn_and_not_for_the_large_one(
    seen: Run, tenant: str, figure: Figure
) -> None:
    """Within two slots of the ideal: those that the other two may have first."""
    answers = sorted(answer.took_s for answer in seen.answers[tenant])
    turns = seen.turns(tenant)[: WAITING[tenant]]
    waits = ", ".join(f"{took_s:.2f}" for took_s in answers)
    figure(f"slots {turns} of {ideal_turns()[tenant]} at best, waits of {waits} s")
    assert {answer.status for answer in seen.answers[tenant]} == {200}
    for turn, ideal, took_s in zip(turns, ideal_turns()[tenant], answers, strict=True):
        assert turn <= ideal + 2
        assert took_s <= (ideal + 2) * SLOT_S / 0.95 + JITTER_S


def test_the_queue_is_seen(seen: Run) -> None:
    """In /metrics, by model, over all workers and replicas."""
    assert seen.waiting == pytest.approx(sum(WAITING.values()), abs=20)


def test_whoever_hangs_up_takes_no_slot(seen: Run, figure: Figure) -> None:
    """Hundreds do at once; the next to come has the next slot."""
    late = [call for call in seen.calls if call.at > seen.left_at + JITTER_S]
    assert all(call.tenant == "one" for call in late)
    assert seen.newcomer.status == 200
    assert seen.newcomer.took_s < 2 * SLOT_S + JITTER_S
    figure(f"answered {seen.newcomer.took_s:.2f} s after {sum(WAITING.values())} had hung up")
