"""Budgets in a time zone: the store's server has the clock, and is told the zone's offsets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.store import Store
from gateway.store.limits import FamilyUse, Limits, Reason
from tests.contract.stores import (
    KINDS,
    Clock,
    ask,
    clock,
    open_store,
    release,
    remaining,
    take,
    used,
)

__all__ = ["clock"]

LIMITS = Limits(images_per_day=2, spend_per_month=200)
HOUR_S = 3600
ABOUT_MS = 1


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
async def store(kind: str, zone: str, clock: Clock) -> AsyncIterator[Store]:
    store = open_store(kind, clock, zone=ZoneInfo(zone))
    yield store
    await store.aclose()


def at(clock: Clock, local: str, zone: str) -> None:
    clock.now = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone)).timestamp() + 0.1


@pytest.mark.parametrize("zone", ["Asia/Shanghai"])
async def test_a_day_begins_at_the_zone_s_midnight(store: Store, zone: str, clock: Clock) -> None:
    """At 16:00 UTC of the day before."""
    at(clock, "2026-05-31T23:59:50", zone)
    verdict = await take(store, ask(1, LIMITS, images=2, cost=200))
    assert verdict.day is not None
    assert verdict.month is not None
    assert verdict.day.reset_ms == pytest.approx(9_900, abs=ABOUT_MS)
    assert verdict.month.reset_ms == pytest.approx(9_900, abs=ABOUT_MS)
    assert (await take(store, ask(2, LIMITS))).reason is Reason.IMAGES_PER_DAY
    clock.advance(10)
    assert datetime.fromtimestamp(clock.now, UTC).hour == 16
    assert remaining(await store.levels("acme", LIMITS))[3:] == [2, 200]
    await release(store, used(1, images=2, cost=200))
    usage = await store.usage("acme", LIMITS)
    assert remaining(usage.levels)[3:] == [2, 200]
    assert usage.today == {"qwen": FamilyUse(1, 2, 200)}


@pytest.mark.parametrize("zone", ["Asia/Shanghai"])
async def test_midnight_of_utc_is_none_there(store: Store, zone: str, clock: Clock) -> None:
    clock.now = datetime(2026, 5, 31, 23, 59, 50, 100_000, UTC).timestamp()
    await release(store, used(1, images=2, cost=200))
    clock.advance(20)
    assert (await take(store, ask(2, LIMITS))).reason is Reason.IMAGES_PER_DAY
    month = Limits(spend_per_month=200)
    assert (await take(store, ask(3, month, cost=1))).reason is Reason.SPEND_PER_MONTH


@pytest.mark.parametrize("zone", ["Europe/Berlin"])
@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
async def test_a_day_on_which_the_clocks_change_has_its_own_length(
    store: Store, zone: str, day: str, hours: int, clock: Clock
) -> None:
    at(clock, f"{day}T00:00:00", zone)
    verdict = await release(store, used(1, images=2, limits=LIMITS))
    assert verdict.day is not None
    assert verdict.day.reset_ms == pytest.approx(hours * HOUR_S * 1000 - 100, abs=ABOUT_MS)
    clock.advance(hours * HOUR_S - 10)
    assert (await take(store, ask(2, LIMITS))).reason is Reason.IMAGES_PER_DAY
    clock.advance(10)
    assert (await take(store, ask(3, LIMITS, images=2))).allowed


@pytest.mark.parametrize("zone", ["America/Havana"])
@pytest.mark.parametrize(("change", "lasts_h"), [("2026-03-08T01:00:00", 23), ("2026-11-01", 25)])
async def test_clocks_that_change_at_midnight_begin_one_day(
    store: Store, zone: str, change: str, lasts_h: int, clock: Clock
) -> None:
    """In spring there is no midnight, in autumn there are two hours of it."""
    at(clock, change, zone)
    clock.advance(-10)
    verdict = await take(store, ask(1, LIMITS, images=2))
    assert verdict.day is not None
    assert verdict.day.reset_ms == pytest.approx(9_900, abs=ABOUT_MS)
    clock.advance(10)
    assert (await take(store, ask(2, LIMITS, images=2))).allowed
    verdict = await release(store, used(2, images=2, limits=LIMITS))
    assert verdict.day is not None
    assert verdict.day.reset_ms == pytest.approx(lasts_h * HOUR_S * 1000 - 100, abs=ABOUT_MS)
    for _ in range(lasts_h - 1):
        clock.advance(HOUR_S)
        assert (await take(store, ask(f"later{clock.now}", LIMITS))).reason is not None
    clock.advance(HOUR_S)
    assert (await take(store, ask(4, LIMITS))).allowed
