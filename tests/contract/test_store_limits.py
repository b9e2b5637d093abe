"""What every store decides for tenants, the same in memory and on each version of Redis."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from gateway.store import Store
from gateway.store.limits import (
    CONCURRENCY_RETRY_MS,
    FamilyUse,
    Limits,
    LimitStatus,
    Reason,
    Reservation,
)
from tests.contract.stores import Clock, ask, clock, release, remaining, store, take, used

__all__ = ["clock", "store"]

EVERYTHING = Limits(
    requests_per_minute=10,
    images_per_minute=20,
    concurrent_requests=8,
    images_per_day=50,
    spend_per_month=1_000_000,
)
NOTHING = Limits()
ABOUT_MS = 1
"""Of rounding: times are seconds here and milliseconds there."""


async def left(store: Store, limits: Limits = EVERYTHING) -> list[int | None]:
    return remaining((await store.usage("acme", limits)).levels)


# --- admission


async def test_a_tenant_without_limits_is_always_admitted(store: Store) -> None:
    """Levels are given only of limits that there are."""
    verdict = await take(store, ask(1, NOTHING))
    assert verdict.allowed
    assert remaining(verdict) == [None] * 5


async def test_an_admitted_request_is_counted_against_all_limits(store: Store) -> None:
    verdict = await take(store, ask(1, EVERYTHING, images=4, cost=300_000))
    assert verdict.allowed
    assert verdict.reason is None
    assert verdict.retry_after_ms is None
    assert remaining(verdict) == [9, 16, 7, 46, 700_000]


@pytest.mark.parametrize(
    ("limits", "images", "cost", "admitted", "reason"),
    [
        (Limits(requests_per_minute=100), 1, 0, 100, Reason.REQUESTS_PER_MINUTE),
        (Limits(images_per_minute=100), 2, 0, 50, Reason.IMAGES_PER_MINUTE),
        (Limits(concurrent_requests=100), 1, 0, 100, Reason.CONCURRENT_REQUESTS),
        (Limits(images_per_day=100), 4, 0, 25, Reason.IMAGES_PER_DAY),
        (Limits(spend_per_month=1_000_000), 1, 30_000, 33, Reason.SPEND_PER_MONTH),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else "",
)
async def test_exactly_the_limit_is_admitted_of_many_at_once(
    store: Store, limits: Limits, images: int, cost: int, admitted: int, reason: Reason
) -> None:
    """Also of two hundred that ask in the same moment, for each kind of limit."""
    verdicts = await asyncio.gather(
        *(take(store, ask(number, limits, images=images, cost=cost)) for number in range(200))
    )
    assert sum(verdict.allowed for verdict in verdicts) == admitted
    assert {verdict.reason for verdict in verdicts} == {None, reason}


async def test_a_refusal_leaves_no_trace(store: Store) -> None:
    """Refused for one limit, a request is counted against none."""
    await take(store, ask("first", EVERYTHING, images=18))
    before = await left(store)
    verdict = await take(store, ask("second", EVERYTHING, images=3))
    assert not verdict.allowed
    assert remaining(verdict) == before
    assert await left(store) == before
    await release(store, used("first", images=18))
    usage = await store.usage("acme", EVERYTHING)
    assert usage.today == {"qwen": FamilyUse(1, 18, 0)}


async def test_tenants_do_not_share_limits(store: Store) -> None:
    one = Limits(requests_per_minute=1)
    assert (await take(store, ask(1, one))).allowed
    assert not (await take(store, ask(2, one))).allowed
    assert (await take(store, ask(3, one, tenant="other"))).allowed


async def test_a_take_that_is_repeated_counts_once(store: Store) -> None:
    """Its answer may have been lost on the way."""
    first = await take(store, ask(1, EVERYTHING, images=2))
    second = await take(store, ask(1, EVERYTHING, images=2))
    assert second.allowed
    assert remaining(first) == remaining(second)


async def test_a_take_that_arrives_after_its_release_books_nothing(store: Store) -> None:
    """It was given up, and lay in the socket of a server that hung."""
    await release(store, used(1, images=0))
    before = await left(store)
    await take(store, ask(1, EVERYTHING, images=2))
    assert await left(store) == before


# --- requests that pay for nothing at first


async def test_who_was_to_be_given_another_s_images_can_pay_for_them_later(store: Store) -> None:
    """It has been counted and has its place, which only those that come anew must find."""
    full = Limits(requests_per_minute=1, concurrent_requests=1, images_per_minute=4)
    await take(store, ask(1, full, images=0))
    for _ in range(2):
        verdict = await take(store, ask(1, full, images=3))
        assert verdict.allowed
        assert remaining(verdict)[:3] == [0, 1, 0]
    await release(store, used(1, images=2))
    assert remaining((await store.usage("acme", full)).levels)[:3] == [0, 2, 1]
    assert (await store.usage("acme", full)).today["qwen"].requests == 1


@pytest.mark.parametrize(
    ("short", "reason"),
    [
        (Limits(images_per_minute=2), Reason.IMAGES_PER_MINUTE),
        (Limits(images_per_day=2), Reason.IMAGES_PER_DAY),
        (Limits(spend_per_month=2), Reason.SPEND_PER_MONTH),
    ],
)
async def test_paying_later_is_refused_without_a_trace(
    store: Store, short: Limits, reason: Reason
) -> None:
    await take(store, ask(1, short, images=0))
    before = await left(store)
    verdict = await take(store, ask(1, short, images=3, cost=3))
    assert verdict.reason is reason
    assert await left(store) == before


async def test_what_is_paid_for_later_is_given_back_when_its_worker_dies(
    store: Store, clock: Clock
) -> None:
    await take(store, ask(1, EVERYTHING, images=0))
    clock.advance(20)
    await take(store, ask(1, EVERYTHING, images=5, cost=100_000))
    assert await left(store) == [9, 15, 7, 45, 900_000]
    clock.advance(20)
    assert await left(store) == [9, 15, 7, 45, 900_000]
    clock.advance(11)
    assert await left(store) == [9, 20, 8, 50, 1_000_000]


async def test_whose_place_expired_has_to_find_one_to_pay_later(store: Store, clock: Clock) -> None:
    one = Limits(concurrent_requests=1, requests_per_minute=2)
    await take(store, ask(1, one, images=0))
    clock.advance(31)
    await take(store, ask(2, one))
    assert (await take(store, ask(1, one))).reason is Reason.CONCURRENT_REQUESTS
    await release(store, used(2))
    assert (await take(store, ask(1, one))).allowed


async def test_a_renewal_books_what_the_store_did_not_hear_of(store: Store) -> None:
    await take(store, ask(1, EVERYTHING, images=0))
    await store.renew("acme", [Reservation("r1", "qwen", 3, 100_000)], 30_000)
    assert await left(store) == [9, 17, 7, 47, 900_000]


# --- reasons and waiting


async def test_a_request_larger_than_the_limit_is_never_admitted(store: Store) -> None:
    verdict = await take(store, ask(1, Limits(images_per_minute=4), images=5))
    assert verdict.reason is Reason.IMAGES_PER_MINUTE
    assert verdict.retry_after_ms is None


async def test_a_full_budget_is_named_before_a_rate(store: Store) -> None:
    """Waiting a minute would not help."""
    limits = Limits(requests_per_minute=1, images_per_day=1)
    await take(store, ask(1, limits))
    verdict = await take(store, ask(2, limits))
    assert verdict.reason is Reason.IMAGES_PER_DAY
    assert verdict.retry_after_ms is None


async def test_the_rate_that_lasts_longest_is_named(store: Store, clock: Clock) -> None:
    limits = Limits(requests_per_minute=2, images_per_minute=10)
    await take(store, ask(1, limits, images=1))
    clock.advance(20)
    await take(store, ask(2, limits, images=9))
    assert (await take(store, ask(3, limits, images=2))).reason is Reason.IMAGES_PER_MINUTE
    assert (await take(store, ask(3, limits, images=1))).reason is Reason.REQUESTS_PER_MINUTE


async def test_a_full_concurrency_suggests_a_wait(store: Store) -> None:
    limits = Limits(concurrent_requests=1)
    await take(store, ask(1, limits))
    verdict = await take(store, ask(2, limits))
    assert verdict.reason is Reason.CONCURRENT_REQUESTS
    assert verdict.retry_after_ms == CONCURRENCY_RETRY_MS


@pytest.mark.parametrize("images", [1, 3])
async def test_retry_after_is_exact(store: Store, clock: Clock, images: int) -> None:
    """Refused just before, admitted just then, though the minute was used at different times."""
    limits = Limits(images_per_minute=10)
    for number in range(5):
        assert (await take(store, ask(number, limits, images=2, lease_ms=90_000))).allowed
        clock.advance(7)
    verdict = await take(store, ask("later", limits, images=images))
    assert not verdict.allowed
    assert verdict.retry_after_ms is not None
    clock.advance(verdict.retry_after_ms / 1000 - ABOUT_MS / 1000)
    assert not (await take(store, ask("later", limits, images=images))).allowed
    clock.advance(2 * ABOUT_MS / 1000)
    assert (await take(store, ask("later", limits, images=images))).allowed


async def test_reset_tells_when_the_window_is_empty(store: Store, clock: Clock) -> None:
    limits = Limits(requests_per_minute=10, images_per_minute=10)
    await take(store, ask(1, limits, images=3, lease_ms=90_000))
    clock.advance(30)
    verdict = await take(store, ask(2, limits, images=0))
    assert verdict.requests is not None
    assert verdict.images is not None
    assert verdict.requests.reset_ms == pytest.approx(60_900, abs=ABOUT_MS)
    assert verdict.images.reset_ms == pytest.approx(30_900, abs=ABOUT_MS)
    clock.advance((verdict.requests.reset_ms + ABOUT_MS) / 1000)
    assert (await left(store, limits))[:2] == [10, 10]


async def test_budgets_tell_when_they_begin_anew(store: Store, clock: Clock) -> None:
    clock.now = datetime(2028, 2, 28, 23, 0, 0, 100_000, UTC).timestamp()
    verdict = await take(store, ask(1, EVERYTHING))
    assert verdict.day is not None
    assert verdict.month is not None
    hour_ms = 3_600_000
    assert verdict.day.reset_ms == pytest.approx(hour_ms - 100, abs=ABOUT_MS)
    assert verdict.month.reset_ms == pytest.approx(25 * hour_ms - 100, abs=ABOUT_MS)  # a leap year


# --- the sliding minute


async def test_nothing_more_is_admitted_for_a_minute(store: Store, clock: Clock) -> None:
    """Not at any edge inside it: this is no fixed window and nothing trickles back."""
    limits = Limits(requests_per_minute=5)
    for number in range(5):
        assert (await take(store, ask(number, limits))).allowed
    for step in range(60):
        assert not (await take(store, ask(f"more{step}", limits))).allowed
        clock.advance(1)
    clock.advance(1.2)
    assert (await take(store, ask("late", limits))).allowed


async def test_a_clock_that_is_set_back_does_not_block_a_tenant(store: Store, clock: Clock) -> None:
    """As after a failover to a machine whose clock is behind."""
    limits = Limits(requests_per_minute=1)
    assert (await take(store, ask(1, limits))).allowed
    clock.advance(-3600)
    assert (await take(store, ask(2, limits))).allowed
    assert not (await take(store, ask(3, limits))).allowed


@pytest.mark.parametrize("back_s", [0.2, 5, 59])
async def test_a_clock_that_slips_back_admits_nothing_more(
    store: Store, clock: Clock, back_s: float
) -> None:
    """Not even by a moment, over the edge of a second."""
    limits = Limits(requests_per_minute=1)
    assert (await take(store, ask(1, limits))).allowed
    clock.advance(-back_s)
    verdict = await take(store, ask(2, limits))
    assert not verdict.allowed
    assert verdict.retry_after_ms is not None
    clock.advance((verdict.retry_after_ms + ABOUT_MS) / 1000)
    assert (await take(store, ask(3, limits))).allowed


# --- settlement


async def test_what_was_not_used_comes_back(store: Store) -> None:
    """Fewer images than asked, and cheaper; the request itself counts."""
    await take(store, ask(1, EVERYTHING, images=10, cost=500_000))
    await release(store, used(1, images=4, cost=200_000))
    assert await left(store) == [9, 16, 8, 46, 800_000]


async def test_a_cache_hit_counts_as_a_request_only(store: Store) -> None:
    await take(store, ask(1, EVERYTHING, images=10, cost=500_000))
    await release(store, used(1, images=0))
    assert await left(store) == [9, 20, 8, 50, 1_000_000]


async def test_what_cost_more_than_planned_is_counted(store: Store) -> None:
    await take(store, ask(1, EVERYTHING, images=1, cost=900_000))
    await release(store, used(1, images=1, cost=1_200_000))
    assert (await left(store))[4] == 0
    verdict = await take(store, ask(2, EVERYTHING, cost=1))
    assert verdict.reason is Reason.SPEND_PER_MONTH


async def test_a_refund_goes_to_the_second_in_which_it_was_booked(
    store: Store, clock: Clock
) -> None:
    """It must not make room for others who came later, once its own second has left."""
    limits = Limits(images_per_minute=10)
    await take(store, ask("old", limits, images=5, lease_ms=120_000))
    clock.advance(59)
    await take(store, ask("new", limits, images=5))
    clock.advance(3)
    await release(store, used("old", images=0))
    assert (await left(store, limits))[1] == 5


async def test_a_second_release_does_nothing(store: Store) -> None:
    await take(store, ask(1, EVERYTHING, images=3, cost=300))
    await release(store, used(1, images=2, cost=200))
    after = await store.usage("acme", EVERYTHING)
    await release(store, used(1, images=2, cost=200))
    again = await store.usage("acme", EVERYTHING)
    assert again.today == after.today == {"qwen": FamilyUse(1, 2, 200)}
    assert remaining(again.levels) == remaining(after.levels)


async def test_a_release_tells_where_the_limits_stand_after_it(store: Store, clock: Clock) -> None:
    """As a look at the usage would: also the second one, and what dead workers held is back."""
    await take(store, ask("dead", EVERYTHING, images=1, cost=100_000))
    clock.advance(20)
    await take(store, ask(1, EVERYTHING, images=10, cost=500_000))
    clock.advance(11)
    for _ in range(2):
        verdict = await release(store, used(1, images=4, cost=200_000, limits=EVERYTHING))
        assert verdict.allowed
        assert remaining(verdict) == await left(store) == [8, 16, 8, 46, 800_000]
        assert verdict.images is not None
        assert verdict.images.reset_ms == pytest.approx(49_900, abs=ABOUT_MS)
    assert remaining(await release(store, used(1))) == [None] * 5


async def test_what_is_all_given_back_leaves_nothing_to_wait_for(store: Store) -> None:
    await take(store, ask(1, EVERYTHING, images=3))
    verdict = await release(store, used(1, images=0, limits=EVERYTHING))
    assert verdict.images == LimitStatus(limit=20, remaining=20, reset_ms=0)


async def test_the_release_of_an_unknown_request_is_booked(store: Store) -> None:
    """It ran while the store was away, or the store has lost it: the money is spent."""
    await release(store, used(1, images=4, cost=400_000))
    assert await left(store) == [9, 16, 8, 46, 600_000]
    usage = await store.usage("acme", EVERYTHING)
    assert usage.this_month == {"qwen": FamilyUse(1, 4, 400_000)}


async def test_usage_is_kept_per_model(store: Store) -> None:
    for number in range(4):
        await take(store, ask(number, NOTHING, images=2, cost=20))
    for number, model in enumerate(["qwen", "qwen", "z-image:1", "z-image:1"]):
        await release(store, used(number, images=2, cost=20, family=model))
    usage = await store.usage("acme", NOTHING)
    expected = {"qwen": FamilyUse(2, 4, 40), "z-image:1": FamilyUse(2, 4, 40)}
    assert usage.today == expected
    assert usage.this_month == expected


# --- leases


async def test_a_lease_expires_and_gives_everything_back(store: Store, clock: Clock) -> None:
    """The worker was killed: its concurrency, images and money are free again."""
    for number in range(8):
        await take(store, ask(number, EVERYTHING, images=2, cost=100_000))
    clock.advance(29)
    verdict = await take(store, ask("early", EVERYTHING))
    assert verdict.reason is Reason.CONCURRENT_REQUESTS
    clock.advance(1.1)
    verdict = await take(store, ask("late", EVERYTHING, images=2, cost=100_000))
    assert remaining(verdict) == [1, 18, 7, 48, 900_000]


async def test_usage_gives_expired_leases_back_too(store: Store, clock: Clock) -> None:
    await take(store, ask(1, EVERYTHING, images=2, cost=100_000))
    clock.advance(31)
    assert await left(store) == [9, 20, 8, 50, 1_000_000]


async def test_a_renewed_lease_lives_on(store: Store, clock: Clock) -> None:
    wanted = ask(1, EVERYTHING, images=2)
    await take(store, wanted)
    for _ in range(9):
        clock.advance(10)
        await store.renew("acme", [wanted.take.reservation], 30_000)
    assert await left(store) == [10, 20, 7, 48, 1_000_000]


async def test_a_lease_that_expired_while_its_worker_was_cut_off_is_booked_again(
    store: Store, clock: Clock
) -> None:
    """The request runs and will cost money, whoever was let in meanwhile."""
    wanted = ask(1, EVERYTHING, images=2, cost=100_000)
    await take(store, wanted)
    clock.advance(31)
    assert (await left(store))[2:] == [8, 50, 1_000_000]
    await store.renew("acme", [wanted.take.reservation], 30_000)
    assert await left(store) == [9, 18, 7, 48, 900_000]


async def test_renewing_tells_a_store_that_lost_its_data(store: Store) -> None:
    lost = Reservation("r1", "qwen", 3, 100_000)
    await store.renew("acme", [lost], 30_000)
    assert await left(store) == [9, 17, 7, 47, 900_000]
    await release(store, used(1, images=1, cost=40_000))
    assert await left(store) == [9, 19, 8, 49, 960_000]


async def test_renewing_a_settled_request_does_nothing(store: Store) -> None:
    """The renewal was on its way when the request ended."""
    wanted = ask(1, EVERYTHING, images=2)
    await take(store, wanted)
    await release(store, used(1, images=2))
    before = await left(store)
    await store.renew("acme", [wanted.take.reservation], 30_000)
    assert await left(store) == before


async def test_the_release_of_an_expired_request_counts_what_it_used(
    store: Store, clock: Clock
) -> None:
    await take(store, ask(1, EVERYTHING, images=4, cost=400_000))
    clock.advance(31)
    await left(store)
    await release(store, used(1, images=4, cost=400_000))
    await release(store, used(1, images=4, cost=400_000))
    assert await left(store) == [9, 16, 8, 46, 600_000]


@pytest.mark.slow
async def test_thousands_of_leases_expire_at_once(store: Store, clock: Clock) -> None:
    """A big worker died: the concurrency limit is free at once, the rest soon."""
    limits = Limits(concurrent_requests=2500, images_per_day=10_000)
    await asyncio.gather(*(take(store, ask(number, limits)) for number in range(2500)))
    clock.advance(31)
    assert (await take(store, ask("next", limits))).allowed
    await left(store, limits)
    await left(store, limits)
    assert (await left(store, limits))[2:4] == [2499, 9_999]


# --- budgets over the calendar


async def test_the_day_begins_anew(store: Store, clock: Clock) -> None:
    clock.now = datetime(2026, 12, 31, 23, 59, 50, 100_000, UTC).timestamp()
    limits = Limits(images_per_day=2, spend_per_month=200)
    await take(store, ask(1, limits, images=2, cost=200))
    assert (await take(store, ask(2, limits))).reason is Reason.IMAGES_PER_DAY
    clock.advance(10)
    assert await left(store, limits) == [None, None, None, 2, 200]
    assert (await take(store, ask(3, limits, images=2, cost=200))).allowed


async def test_only_the_day_begins_anew_inside_a_month(store: Store, clock: Clock) -> None:
    clock.now = datetime(2026, 4, 29, 23, 59, 50, 100_000, UTC).timestamp()
    limits = Limits(images_per_day=2, spend_per_month=200)
    await take(store, ask(1, limits, images=2, cost=150))
    await release(store, used(1, images=2, cost=150))
    clock.advance(10)
    assert await left(store, limits) == [None, None, None, 2, 50]
    usage = await store.usage("acme", limits)
    assert usage.today == {}
    assert usage.this_month == {"qwen": FamilyUse(1, 2, 150)}


async def test_a_refund_of_yesterday_does_not_enlarge_today(store: Store, clock: Clock) -> None:
    """The reservation was booked on the day that has ended; its use is reported today."""
    clock.now = datetime(2026, 4, 29, 23, 59, 50, 100_000, UTC).timestamp()
    limits = Limits(images_per_day=10, spend_per_month=200)
    await take(store, ask("old", limits, images=4, cost=100))
    clock.advance(10)
    await take(store, ask("new", limits, images=4, cost=0))
    await release(store, used("old", images=1, cost=40))
    assert await left(store, limits) == [None, None, None, 6, 160]
    assert (await store.usage("acme", limits)).today == {"qwen": FamilyUse(1, 1, 40)}


@pytest.mark.parametrize(
    "last_day",
    ["2026-01-31", "2026-02-28", "2028-02-29", "2026-04-30", "2026-12-31", "2100-02-28"],
)
async def test_every_month_ends_on_its_last_day(store: Store, clock: Clock, last_day: str) -> None:
    limits = Limits(spend_per_month=100)
    clock.now = datetime.fromisoformat(f"{last_day}T00:00:00.1Z").timestamp()
    await release(store, used(1, cost=100))
    clock.advance(86_390)
    assert not (await take(store, ask(2, limits, cost=1))).allowed
    clock.advance(10)
    assert (await take(store, ask(3, limits, cost=1))).allowed


async def test_a_clock_that_slips_back_over_midnight_grants_no_new_budget(
    store: Store, clock: Clock
) -> None:
    clock.now = datetime(2026, 5, 1, 0, 0, 1, tzinfo=UTC).timestamp()
    limits = Limits(images_per_day=2, spend_per_month=200)
    await take(store, ask(1, limits, images=1, cost=150))
    clock.advance(-2)
    assert (await take(store, ask(2, limits, images=2, cost=0))).reason is Reason.IMAGES_PER_DAY
    assert (await take(store, ask(3, limits, cost=51))).reason is Reason.SPEND_PER_MONTH
    clock.advance(3)
    assert await left(store, limits) == [None, None, None, 1, 50]


async def test_the_living_share_what_there_is(store: Store) -> None:
    """Only a store that is shared has more than one."""
    share = await store.heartbeat("a", 10_000)
    assert (share.index, share.workers) == (0, 1)
    await store.ping()
