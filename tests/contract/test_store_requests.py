"""A request's whole way through every store: what it is given, what it books, what it leaves."""

from __future__ import annotations

from unittest.mock import ANY

import pytest
from msgspec.structs import replace

from gateway.observability.context import ClientOutcome
from gateway.store import Store
from gateway.store.generations import (
    DELIVERED_REUSED_MS,
    DOUBT_MS,
    IDEMPOTENCY_MS,
    PARTS_KEPT_MS,
    UNDELIVERED_REUSED_MS,
    Completion,
    Doubtful,
    Entry,
    Failure,
    FencingResult,
    Follow,
    Found,
    How,
    Idempotency,
    Lead,
    Leadership,
    Place,
    Refusal,
    State,
)
from gateway.store.limits import FamilyUse, Limits, Reason, Settlement, Verdict
from gateway.store.requests import End, Entered, Leave
from tests.contract.generations import (
    LEASE_MS,
    SCOPE,
    UNCACHED,
    completion,
    enter,
    entry,
    request_of,
    retry,
    state,
    unshared,
)
from tests.contract.stores import Clock, clock, remaining, store

__all__ = ["clock", "store"]

LIMITS = Limits(
    requests_per_minute=10,
    images_per_minute=20,
    concurrent_requests=3,
    images_per_day=20,
    spend_per_month=1000,
)
ONE = Limits(concurrent_requests=1)
IMAGES = 5
COST = 500


class Requests:
    """Those of one tenant, each for five images at 100 each."""

    def __init__(self, store: Store, limits: Limits = LIMITS) -> None:
        self.store = store
        self.limits = limits

    async def entered(self, wanted: Entry, follows: str | None = None) -> Entered[bytes]:
        return await self.store.enter(
            request_of(wanted, follows, limits=self.limits, images=IMAGES, cost=COST)
        )

    async def enter(self, wanted: Entry, follows: str | None = None) -> Place[bytes]:
        place = (await self.entered(wanted, follows)).place
        assert place is not None
        return place

    async def lead(self, wanted: Entry, follows: str | None = None) -> Leadership:
        place = await self.enter(wanted, follows)
        assert isinstance(place, Lead), place
        return place.leadership

    async def refused(self, wanted: Entry, follows: str | None = None) -> Reason:
        entered = await self.entered(wanted, follows)
        assert entered.place is None
        assert entered.verdict.reason is not None
        return entered.verdict.reason

    async def progress(self, leadership: Leadership, index: int, images: int) -> FencingResult:
        """One call more has brought an image; `images` in all."""
        return await self.store.progress(
            leadership, index, [f"u{index}"], self.used(leadership.leader, images)
        )

    async def end(
        self,
        leadership: Leadership,
        outcome: Completion | Failure = UNCACHED,
        *,
        images: int = 0,
        client: ClientOutcome | None = None,
        retry_key: str | None = "same",
        leaves: bool = False,
    ) -> Verdict:
        """With a `client`, its leader leaves behind it."""
        told = End(
            leadership=leadership,
            retry_key=retry_key,
            outcome=outcome,
            settlement=self.used(leadership.leader, images),
            leaves=leaves,
        )
        _, verdict = await self.store.end(told)
        if client is None:
            return verdict
        return await self.leave(leadership.leader, client, leadership.id, retry_key)

    async def leave(
        self,
        request: str,
        outcome: ClientOutcome = ClientOutcome.DELIVERED,
        generation: str | None = "r1",
        retry_key: str | None = "same",
    ) -> Verdict:
        return await self.store.leave(
            Leave(
                settlement=self.used(request, 0),
                outcome=outcome,
                scope=SCOPE,
                generation=generation,
                retry_key=retry_key,
            )
        )

    def used(self, request: str, images: int) -> Settlement:
        return Settlement("acme", request, "m", images, images * 100, self.limits)

    async def left(self) -> list[int | None]:
        """Of each limit."""
        return remaining(await self.store.levels("acme", self.limits))

    async def use(self) -> FamilyUse:
        usage = await self.store.usage("acme", self.limits)
        assert usage.today == usage.this_month
        return usage.today.get("m", FamilyUse())


@pytest.fixture
def requests(store: Store) -> Requests:
    return Requests(store)


# --- what is booked


async def test_who_leads_reserves_everything_it_may_use(requests: Requests) -> None:
    entered = await requests.entered(entry("r1"))
    assert entered.place == Lead(Leadership(SCOPE, "r1", "r1"), {})
    assert remaining(entered.verdict) == [9, 15, 2, 15, 500]
    assert await requests.left() == [9, 15, 2, 15, 500]


async def test_who_is_given_another_s_images_is_counted_only(requests: Requests) -> None:
    """While they are made, and once they are there."""
    claim = await requests.lead(entry("r1"))
    assert isinstance(await requests.enter(entry("r2")), Follow)
    assert await requests.left() == [8, 15, 1, 15, 500]
    await requests.end(claim, completion(), images=5)
    assert isinstance(await requests.enter(entry("r3")), Found)
    assert await requests.left() == [7, 15, 0, 15, 500]


@pytest.mark.parametrize(
    "wanted", [entry("r1"), unshared("r1"), retry("r1")], ids=["shared", "unshared", "retry"]
)
async def test_entering_again_answers_the_same_and_books_nothing(
    requests: Requests, wanted: Entry
) -> None:
    """The answer was lost on its way."""
    for _ in range(3):
        entered = await requests.entered(wanted)
        assert entered.place == Lead(Leadership(SCOPE, "r1", "r1"), {})
        assert remaining(entered.verdict) == [9, 15, 2, 15, 500]


async def test_who_joined_and_enters_again_is_one_client(requests: Requests) -> None:
    claim = await requests.lead(entry("r1"))
    for _ in range(3):
        assert isinstance(await requests.enter(entry("r2")), Follow)
    await requests.leave("r2", ClientOutcome.GONE)
    await requests.end(claim, Failure())
    assert await state(requests.store, "r1") is State.MISSING


async def test_a_conflict_or_a_miss_books_nothing(requests: Requests) -> None:
    await requests.lead(entry("r1", idempotency=Idempotency("k", "b")))
    before = await requests.left()
    conflict = await requests.entered(entry("r2", idempotency=Idempotency("k", "x")))
    missing = await requests.entered(entry("r3", cache_key="none", only_if_cached=True))
    assert (conflict.place, missing.place) == (Refusal.CONFLICT, Refusal.MISSING)
    assert remaining(conflict.verdict) == remaining(missing.verdict) == before
    assert await requests.left() == before


async def test_parts_that_are_paid_for_are_not_reserved_again(requests: Requests) -> None:
    """A budget that has room for the rest lets the retry in."""
    claim = await requests.lead(unshared("r1"))
    for index in range(4):
        await requests.progress(claim, index, index + 1)
    await requests.end(claim, Failure(error=b"error"), images=4, client=ClientOutcome.ANSWERED)
    requests.limits = replace(LIMITS, images_per_day=5, spend_per_month=500)
    entered = await requests.entered(retry("r2"))
    assert isinstance(entered.place, Lead)
    assert len(entered.place.parts) == 4
    assert remaining(entered.verdict)[3:] == [0, 0]


async def test_parts_of_another_plan_count_for_nothing(requests: Requests) -> None:
    claim = await requests.lead(unshared("r1"))
    await requests.progress(claim, 0, 1)
    await requests.end(claim, Failure(error=b"error"), images=1)
    await requests.enter(retry("r2", plan_hash="other"))
    assert (await requests.left())[3] == 14


# --- who is refused


async def test_who_is_refused_changes_nothing(requests: Requests) -> None:
    requests.limits = replace(LIMITS, images_per_day=9)
    await requests.lead(entry("r1"))
    before = await requests.left()
    assert await requests.refused(entry("r2", cache_key="x")) is Reason.IMAGES_PER_DAY
    assert await requests.left() == before
    assert await state(requests.store, "r2") is State.MISSING
    requests.limits = LIMITS
    assert (await requests.lead(entry("r3", cache_key="x"))).id == "r3"


async def test_a_refused_retry_finds_the_same_again(store: Store, clock: Clock) -> None:
    """Neither claimed nor explained away: its images were paid for."""
    requests = Requests(store, Limits(requests_per_minute=1))
    claim = await requests.lead(unshared("r1"))
    await requests.end(claim, images=5)
    await requests.leave("r1", ClientOutcome.GONE)
    for number in range(3):
        assert await requests.refused(retry(f"a{number}")) is Reason.REQUESTS_PER_MINUTE
    clock.advance(62)
    assert isinstance(await requests.enter(retry("a9")), Found)


async def test_a_follower_that_may_not_pay_leaves_it_to_the_next(requests: Requests) -> None:
    claim = await requests.lead(entry("r1"))
    for name in ("r2", "r3"):
        await requests.enter(entry(name))
    await requests.end(claim, Failure(), client=ClientOutcome.ANSWERED)
    requests.limits = replace(LIMITS, images_per_minute=4)
    before = await requests.left()
    assert await requests.refused(entry("r2"), "r1") is Reason.IMAGES_PER_MINUTE
    assert await requests.left() == before
    requests.limits = LIMITS
    assert await requests.lead(entry("r3"), "r1") == Leadership(SCOPE, "r1", "r3")
    assert await requests.left() == [7, 15, 1, 15, 500]


# --- the place of concurrency


async def test_a_retry_takes_the_place_of_its_former_attempt(store: Store) -> None:
    """What it waits for holds the place that it would need."""
    requests = Requests(store, ONE)
    claim = await requests.lead(unshared("r1"))
    assert isinstance(await requests.enter(retry("r2")), Follow)
    assert (await requests.left())[2] == 0
    assert await requests.refused(entry("r3")) is Reason.CONCURRENT_REQUESTS
    await requests.end(claim, images=5, client=ClientOutcome.GONE)
    assert (await requests.left())[2] == 0
    await requests.leave("r2")
    assert (await requests.left())[2] == 1


async def test_an_idempotency_key_takes_the_place_over_too(store: Store) -> None:
    requests = Requests(store, ONE)
    wanted = entry("r1", cache_key=None, idempotency=Idempotency("k", "b"))
    await requests.lead(wanted)
    assert isinstance(await requests.enter(replace(wanted, request="r2")), Follow)


async def test_without_its_place_a_request_keeps_its_money(store: Store, clock: Clock) -> None:
    """And its lease, which is renewed as any."""
    requests = Requests(store, replace(LIMITS, concurrent_requests=1))
    claim = await requests.lead(unshared("r1"))
    await requests.enter(retry("r2"))
    for _ in range(4):
        clock.advance(20)
        for name, images in (("r1", IMAGES), ("r2", 0)):
            want = request_of(unshared(name), images=images, cost=images * 100).take.reservation
            await store.renew("acme", [want], 30_000)
        await store.renew_leaderships([claim], LEASE_MS)
    assert await requests.left() == [10, 20, 0, 15, 500]
    clock.advance(31)
    assert await requests.left() == [10, 20, 1, 20, 1000]


async def test_repeats_of_one_request_do_not_count_as_one(store: Store) -> None:
    """As many as may be concurrent may have lost their place, and no more."""
    requests = Requests(store, ONE)
    wanted = entry("r1", cache_key=None, idempotency=Idempotency("k", "b"))
    await requests.lead(wanted)
    await requests.enter(replace(wanted, request="r2"))
    third = replace(wanted, request="r3")
    assert await requests.refused(third) is Reason.CONCURRENT_REQUESTS
    await requests.leave("r2", ClientOutcome.GONE)
    assert isinstance(await requests.enter(third), Follow)


async def test_a_repeat_after_the_end_needs_room(store: Store) -> None:
    """Nothing holds the place any more, or somebody else does."""
    requests = Requests(store, ONE)
    claim = await requests.lead(unshared("r1"))
    await requests.end(claim, images=5, client=ClientOutcome.GONE)
    await requests.lead(unshared("r2", retry_key="other"))
    assert await requests.refused(retry("r3")) is Reason.CONCURRENT_REQUESTS


async def test_the_place_lasts_until_the_last_byte(store: Store) -> None:
    requests = Requests(store, ONE)
    claim = await requests.lead(unshared("r1"))
    await requests.end(claim, images=5)
    assert await requests.refused(unshared("r2")) is Reason.CONCURRENT_REQUESTS
    verdict = await requests.leave("r1")
    assert remaining(verdict)[2] == 1


# --- what is used


async def test_parts_are_booked_as_they_come(requests: Requests, clock: Clock) -> None:
    """A worker that is killed gives back what it had not used."""
    claim = await requests.lead(entry("r1"))
    for _ in range(2):
        await requests.progress(claim, 0, 1)
        await requests.progress(claim, 1, 2)
        await requests.progress(claim, 0, 1)
    assert await requests.use() == FamilyUse(0, 2, 200)
    assert await requests.left() == [9, 15, 2, 15, 500]
    clock.advance(31)
    assert await requests.left() == [9, 18, 3, 18, 800]
    assert await requests.use() == FamilyUse(0, 2, 200)


async def test_the_end_books_what_was_not_booked_before(requests: Requests) -> None:
    claim = await requests.lead(entry("r1"))
    await requests.progress(claim, 0, 2)
    for _ in range(2):
        verdict = await requests.end(claim, completion(), images=4)
        assert remaining(verdict) == [9, 16, 2, 16, 600]
    assert await requests.use() == FamilyUse(1, 4, 400)
    assert remaining(await requests.leave("r1")) == [9, 16, 3, 16, 600]
    assert await requests.use() == FamilyUse(1, 4, 400)


async def test_a_lease_that_expired_is_booked_again_without_what_is_used(
    requests: Requests, clock: Clock
) -> None:
    claim = await requests.lead(entry("r1"))
    await requests.progress(claim, 0, 2)
    clock.advance(31)
    assert (await requests.left())[2:] == [3, 18, 800]
    want = request_of(entry("r1"), images=IMAGES, cost=COST).take.reservation
    await requests.store.renew("acme", [want], 30_000)
    assert (await requests.left())[2:] == [2, 15, 500]
    await requests.end(claim, completion(), images=5)
    assert (await requests.left())[2:] == [2, 15, 500]
    assert await requests.use() == FamilyUse(1, 5, 500)


async def test_an_end_after_the_lease_is_booked_once(requests: Requests, clock: Clock) -> None:
    claim = await requests.lead(entry("r1"))
    await requests.progress(claim, 0, 2)
    clock.advance(31)
    await requests.left()
    for _ in range(2):
        await requests.end(claim, completion(), images=5)
    assert (await requests.left())[3:] == [15, 500]
    assert await requests.use() == FamilyUse(1, 5, 500)


async def test_more_than_was_reserved_is_booked_too(requests: Requests) -> None:
    claim = await requests.lead(entry("r1"))
    await requests.progress(claim, 0, 7)
    assert (await requests.left())[3:] == [13, 300]
    await requests.end(claim, completion(), images=7)
    assert (await requests.left())[3:] == [13, 300]


async def test_what_a_store_never_saw_is_booked_in_whole(requests: Requests) -> None:
    """It has lost its data, or the request was admitted while it was away."""
    claim = Leadership(SCOPE, "r1", "r1")
    assert await requests.progress(claim, 0, 2) is FencingResult.MISSING
    assert await requests.left() == [9, 18, 3, 18, 800]
    want = request_of(entry("r1"), images=IMAGES, cost=COST).take.reservation
    await requests.store.renew("acme", [want], 30_000)
    assert await requests.left() == [9, 15, 2, 15, 500]
    for _ in range(2):
        await requests.end(claim, completion(), images=5)
    await requests.leave("r1")
    assert await requests.left() == [9, 15, 3, 15, 500]
    assert await requests.use() == FamilyUse(1, 5, 500)


async def test_a_fenced_leader_s_money_is_booked(requests: Requests, clock: Clock) -> None:
    old = await requests.lead(entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    await requests.lead(entry("r2"))
    assert await requests.progress(old, 0, 1) is FencingResult.FENCED
    await requests.end(old, completion(), images=3, client=ClientOutcome.GONE)
    assert await requests.use() == FamilyUse(1, 3, 300)
    assert (await requests.left())[3:] == [12, 200]


async def test_who_led_nothing_is_counted_once(requests: Requests) -> None:
    await requests.lead(entry("r1"))
    await requests.enter(entry("r2"))
    for _ in range(3):
        await requests.leave("r2")
    assert await requests.use() == FamilyUse(1, 0, 0)
    assert await requests.left() == [8, 15, 2, 15, 500]


async def test_an_end_that_a_failover_lost_is_repeated(requests: Requests) -> None:
    """The replica has not heard of it; the worker tells it again, and the rest as well."""
    claim = await requests.lead(entry("r1"))
    await requests.end(claim, completion(), images=5)  # this one, at the second telling
    for _ in range(2):
        await requests.end(claim, completion(), images=5)
        await requests.leave("r1")
    assert await requests.use() == FamilyUse(1, 5, 500)
    assert await requests.left() == [9, 15, 3, 15, 500]


# --- a hit of URLs, which leaves as it enters


def wants_urls(request: str, **changes: object) -> Entry:
    return entry(request, needs_url=True, **changes)


async def cached(requests: Requests) -> None:
    """One result in the cache, and nobody here."""
    await requests.end(await requests.lead(entry("r1")), completion(), images=5)
    await requests.leave("r1")


async def test_who_is_given_cached_urls_is_counted_and_has_left(requests: Requests) -> None:
    await cached(requests)
    assert await requests.left() == [9, 15, 3, 15, 500]
    entered = await requests.entered(wants_urls("r2"))
    assert entered.has_left
    assert entered.place == Found("r1", b"result", ANY, How.HIT)
    assert remaining(entered.verdict) == await requests.left() == [8, 15, 3, 15, 500]
    assert await requests.use() == FamilyUse(2, 5, 500)
    assert (await requests.store.cache_stats(SCOPE)).counts == {"led": 1, "hit": 1}


async def test_who_has_left_with_urls_is_given_them_again_and_counted_once(
    requests: Requests,
) -> None:
    """The answer was lost on its way."""
    await cached(requests)
    assert (await requests.entered(wants_urls("r2"))).has_left
    for _ in range(2):
        again = await requests.entered(wants_urls("r2"))
        assert again.has_left
        assert again.place == Found("r1", b"result", ANY, How.HIT)
        assert remaining(again.verdict) == await requests.left() == [8, 15, 3, 15, 500]
    assert await requests.use() == FamilyUse(2, 5, 500)
    assert (await requests.store.cache_stats(SCOPE)).counts == {"led": 1, "hit": 1}


async def test_who_has_left_with_urls_is_given_them_again_though_a_limit_is_full(
    store: Store,
) -> None:
    requests = Requests(store)
    await cached(requests)
    assert (await requests.entered(wants_urls("r2"))).has_left
    await requests.lead(entry("r3", cache_key="other"))
    requests.limits = Limits(requests_per_minute=3, concurrent_requests=1)
    assert await requests.refused(wants_urls("r4")) is Reason.REQUESTS_PER_MINUTE
    assert (await requests.entered(wants_urls("r2"))).has_left


@pytest.mark.parametrize("follows", [None, "r1"], ids=["never heard", "cannot read them"])
async def test_who_has_left_with_urls_and_has_to_wait_needs_a_place(
    store: Store, follows: str | None
) -> None:
    """It holds none; of its minute it has been counted already."""
    requests = Requests(store, replace(LIMITS, requests_per_minute=3, concurrent_requests=1))
    await cached(requests)
    assert (await requests.entered(wants_urls("r2"))).has_left
    await requests.store.discard(SCOPE, "r1")
    await requests.lead(entry("r3", retry_key="same"))
    before = await requests.left()
    assert await requests.refused(wants_urls("r2"), follows) is Reason.CONCURRENT_REQUESTS
    assert await requests.left() == before

    requests.limits = replace(requests.limits, concurrent_requests=2)
    for _ in range(2):
        again = await requests.entered(wants_urls("r2"), follows)
        assert again.place == Follow("r3", How.JOINED)
        assert not again.has_left
        assert remaining(again.verdict)[:3] == [0, 10, 0]
    # It counts among those that wait: as it goes, the leader's client still does.
    await requests.leave("r2", ClientOutcome.GONE, "r3")
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r4")), Lead)


async def test_who_could_not_read_its_urls_and_finds_others_holds_a_place(
    requests: Requests,
) -> None:
    await cached(requests)
    assert (await requests.entered(wants_urls("r2"))).has_left
    await requests.store.discard(SCOPE, "r1")
    claim = await requests.lead(entry("r3"))
    await requests.end(claim, completion(), images=5)
    again = await requests.entered(wants_urls("r2"), follows="r1")
    assert again.place == Found("r3", b"result", ANY, How.HIT)
    assert not again.has_left
    assert (await requests.left())[2] == 1
    await requests.leave("r2", ClientOutcome.DELIVERED, "r3")
    assert (await requests.left())[2] == 2


async def test_who_never_heard_of_them_and_pays_is_booked(requests: Requests) -> None:
    """The store was lost before it answered, and the worker went on alone."""
    await cached(requests)
    assert (await requests.entered(wants_urls("r2"))).has_left
    claim = Leadership(SCOPE, "r2", "r2")
    for _ in range(2):
        await requests.end(claim, images=3)
    await requests.leave("r2")
    assert await requests.left() == [8, 12, 3, 12, 200]
    assert await requests.use() == FamilyUse(2, 8, 800)


async def test_who_cannot_read_them_pays(requests: Requests) -> None:
    """It is counted already."""
    await cached(requests)
    wanted = wants_urls("r2")
    assert (await requests.entered(wanted)).has_left
    await requests.store.discard(SCOPE, "r1")
    again = await requests.entered(wanted, follows="r1")
    assert again.place == Lead(Leadership(SCOPE, "r2", "r2"), {})
    assert not again.has_left
    assert remaining(again.verdict) == [8, 10, 2, 10, 0]
    await requests.end(Leadership(SCOPE, "r2", "r2"), images=5)
    await requests.leave("r2")
    assert await requests.use() == FamilyUse(2, 10, 1000)


async def test_a_hit_of_urls_needs_room_for_one_request(store: Store) -> None:
    await cached(Requests(store))
    for limits, why in [
        (Limits(requests_per_minute=1), Reason.REQUESTS_PER_MINUTE),
        (Limits(concurrent_requests=0), Reason.CONCURRENT_REQUESTS),
    ]:
        requests = Requests(store, limits)
        before = await requests.left()
        assert await requests.refused(wants_urls("r2")) is why
        assert await requests.left() == before


async def test_a_hit_stays_where_something_is_left_to_do(requests: Requests) -> None:
    """Its images are sent, or its key is to find them again."""
    await cached(requests)
    for wanted in (entry("r2"), wants_urls("r3", idempotency=Idempotency("k", "b"))):
        entered = await requests.entered(wanted)
        assert isinstance(entered.place, Found)
        assert entered.place.how is How.HIT
        assert not entered.has_left
    assert (await requests.left())[2] == 1


async def test_who_joined_and_finds_urls_when_it_enters_again_stays(requests: Requests) -> None:
    """It holds a place, which its leaving frees."""
    claim = await requests.lead(entry("r1"))
    assert isinstance(await requests.enter(wants_urls("r2")), Follow)
    await requests.end(claim, completion(), images=5)
    again = await requests.entered(wants_urls("r2"))
    assert isinstance(again.place, Found)
    assert not again.has_left
    assert (await requests.left())[2] == 1


# --- an end by which its leader leaves


async def test_an_end_may_free_the_place_and_take_the_answer_for_delivered(
    requests: Requests,
) -> None:
    claim = await requests.lead(unshared("r1"))
    for _ in range(3):
        verdict = await requests.end(claim, images=4, leaves=True)
        assert remaining(verdict) == await requests.left() == [9, 16, 3, 16, 600]
        assert await requests.use() == FamilyUse(1, 4, 400)
    assert await requests.enter(unshared("r1")) is Refusal.MISSING
    assert isinstance(await requests.enter(unshared("r2")), Lead)
    assert isinstance(await requests.enter(retry("r3")), Follow | Found)


@pytest.mark.parametrize("outcome", [ClientOutcome.GONE, ClientOutcome.ANSWERED])
async def test_an_answer_that_did_not_arrive_is_corrected(
    requests: Requests, outcome: ClientOutcome
) -> None:
    """What nobody was given is the next one's; who was told an error knows that there is none."""
    await requests.end(await requests.lead(unshared("r1")), images=5, leaves=True)
    left = await requests.left()
    for _ in range(3):
        await requests.leave("r1", outcome)
    assert await requests.left() == left
    assert await requests.use() == FamilyUse(1, 5, 500)
    is_next_ones = isinstance(await requests.enter(unshared("r2")), Found)
    assert is_next_ones is (outcome is ClientOutcome.GONE)


async def test_it_is_not_the_next_one_s_while_others_wait_for_it(requests: Requests) -> None:
    claim = await requests.lead(entry("r1", retry_key="same"))
    assert isinstance(await requests.enter(entry("r2")), Follow)
    await requests.end(claim, images=5, leaves=True)
    await requests.leave("r1", ClientOutcome.GONE)
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r3")), Lead)


async def test_a_store_that_lost_the_generation_is_told_again_who_left(
    requests: Requests,
) -> None:
    claim = Leadership(SCOPE, "r1", "r1")
    told = End(
        leadership=claim,
        retry_key="same",
        outcome=UNCACHED,
        settlement=requests.used("r1", 5),
        leaves=True,
    )
    fencing, _ = await requests.store.end(told)
    assert fencing is FencingResult.MISSING
    await requests.store.restore(claim, unshared("r1"), LEASE_MS, {})
    fencing, _ = await requests.store.end(told)
    assert fencing is FencingResult.KEPT
    assert await requests.left() == [9, 15, 3, 15, 500]
    assert await requests.use() == FamilyUse(1, 5, 500)
    assert isinstance(await requests.enter(unshared("r2")), Lead)


async def test_a_fenced_leader_s_leaving_is_not_its_successor_s(
    requests: Requests, clock: Clock
) -> None:
    old = await requests.lead(unshared("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    new = await requests.lead(retry("r2"))
    assert new.id == old.id
    await requests.end(old, images=3, leaves=True)
    assert await requests.use() == FamilyUse(1, 3, 300)
    await requests.end(new, images=5)
    await requests.leave("r2", ClientOutcome.GONE)
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r3")), Found)


leaving = pytest.mark.parametrize("leaves", [False, True], ids=["behind the answer", "as it ends"])


@leaving
async def test_what_another_was_given_meanwhile_is_nobody_s_to_claim(
    requests: Requests, leaves: bool
) -> None:
    """Before it is heard that the leader's client hung up, however often that is told."""
    await requests.end(await requests.lead(unshared("r1")), images=5, leaves=leaves)
    assert isinstance(await requests.enter(retry("r2")), Found)
    await requests.leave("r2")
    for _ in range(2):
        await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r3")), Lead)


@leaving
async def test_what_the_next_one_was_given_is_not_the_one_s_after_it(
    requests: Requests, leaves: bool
) -> None:
    """The answer to the note on its first client was lost."""
    await requests.end(await requests.lead(unshared("r1")), images=5, leaves=leaves)
    await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r2")), Found)
    await requests.leave("r2")
    await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r3")), Lead)


@leaving
async def test_what_a_follower_was_given_is_nobody_s_to_claim(
    requests: Requests, leaves: bool
) -> None:
    claim = await requests.lead(entry("r1", retry_key="same"))
    assert isinstance(await requests.enter(entry("r2", retry_key="same")), Follow)
    await requests.end(claim, images=5, leaves=leaves)
    await requests.leave("r2")
    await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r3")), Lead)


@leaving
async def test_an_end_repeated_after_a_failover_does_not_overrule_the_leaving(
    requests: Requests, leaves: bool
) -> None:
    """The replica had lost the end, and has the leaving."""
    claim = await requests.lead(unshared("r1"))
    await requests.leave("r1", ClientOutcome.GONE)
    await requests.end(claim, images=5, leaves=leaves)
    assert isinstance(await requests.enter(unshared("r2")), Found)


@leaving
async def test_a_former_leader_is_counted_out_once(
    requests: Requests, clock: Clock, leaves: bool
) -> None:
    """Its successor and another wait; the successor's hang-up does not make it the next one's."""
    old = await requests.lead(entry("r1", retry_key="same"))
    clock.advance(LEASE_MS / 1000 + 1)
    new = await requests.lead(retry("r2", cache_key="key"))
    assert isinstance(await requests.enter(entry("r9")), Follow)
    await requests.end(old, images=3, leaves=leaves)
    for _ in range(3):
        await requests.leave("r1", ClientOutcome.GONE)
    await requests.store.client_gone(new, "same")
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r3")), Lead)


@leaving
async def test_what_was_given_before_the_end_was_heard_is_nobody_s_to_claim(
    requests: Requests, leaves: bool
) -> None:
    """In the leader's worker a follower has the result before the store has."""
    claim = await requests.lead(unshared("r1"))
    assert isinstance(await requests.enter(retry("r2")), Follow)
    await requests.leave("r2")
    await requests.end(claim, images=5, leaves=leaves)
    await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r3")), Lead)


async def test_a_follower_that_the_store_has_forgotten_is_not_its_leader(
    requests: Requests,
) -> None:
    """The data were lost, and the leader is put back alone."""
    await requests.store.restore(Leadership(SCOPE, "r1", "r1"), unshared("r1"), LEASE_MS, {})
    await requests.leave("r2", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r3")), Lead)


async def test_all_former_leaders_are_counted_out_once(requests: Requests) -> None:
    """They hand over, one after the other, and leave only then."""
    requests.limits = Limits()
    names = ["r1", "r2", "r3", "r9"]
    claim = await requests.lead(entry("r1", retry_key="same"))
    for name in names[1:]:
        assert isinstance(await requests.enter(entry(name, retry_key="same")), Follow)
    for name in names[1:3]:
        await requests.end(claim, Failure())
        claim = await requests.lead(entry(name, retry_key="same"), "r1")
    for name in names[:2]:
        await requests.leave(name, ClientOutcome.ANSWERED)
    await requests.store.client_gone(claim, "same")
    assert isinstance(await requests.enter(unshared("r4")), Lead)


async def test_a_takeover_begins_anew_with_what_is_delivered(
    requests: Requests, clock: Clock
) -> None:
    """A failover lost the former leader's end, and not that it was delivered."""
    await requests.lead(unshared("r1"))
    await requests.leave("r1")
    clock.advance(LEASE_MS / 1000 + 1)
    claim = await requests.lead(retry("r2"))
    clock.advance(DELIVERED_REUSED_MS / 1000)
    await requests.store.renew_leaderships([claim], LEASE_MS)
    await requests.end(claim, images=5)
    await requests.leave("r2", ClientOutcome.GONE)
    requests.limits = Limits()
    assert isinstance(await requests.enter(retry("r3")), Found)


async def test_paid_parts_are_found_though_who_took_over_was_cut_off(requests: Requests) -> None:
    """It never heard that it leads."""
    claim = await requests.lead(unshared("r1"))
    await requests.progress(claim, 0, 1)
    await requests.end(claim, Failure(error=b"error"), images=1, client=ClientOutcome.ANSWERED)
    assert isinstance(await requests.enter(unshared("r2")), Lead)
    await requests.leave("r2", ClientOutcome.ANSWERED, None)
    again = await requests.enter(unshared("r3"))
    assert isinstance(again, Lead)
    assert again.parts == {0: ("u0",)}


async def test_a_result_that_was_adopted_unheard_is_the_next_one_s(requests: Requests) -> None:
    await requests.end(await requests.lead(unshared("r1")), images=5)
    await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r2")), Found)
    for _ in range(2):
        await requests.leave("r2", ClientOutcome.ANSWERED, None)
    assert isinstance(await requests.enter(unshared("r3")), Found)


@leaving
async def test_a_store_that_hears_of_the_leaving_first_and_is_told_all_again(
    requests: Requests, leaves: bool
) -> None:
    """It had lost its data: it is put back, ended, and left again."""
    claim = Leadership(SCOPE, "r1", "r1")
    await requests.leave("r1", ClientOutcome.GONE)
    await requests.store.restore(claim, unshared("r1"), LEASE_MS, {})
    await requests.end(claim, images=5, leaves=leaves)
    for _ in range(2):
        await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r2")), Found)


async def test_what_a_former_leader_delivered_is_not_its_successor_s(
    requests: Requests, clock: Clock
) -> None:
    await requests.lead(unshared("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    claim = await requests.lead(retry("r2"))
    await requests.leave("r1")
    clock.advance(DELIVERED_REUSED_MS / 1000)
    await requests.store.renew_leaderships([claim], LEASE_MS)
    await requests.end(claim, images=5)
    await requests.leave("r2", ClientOutcome.GONE)
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r3")), Found)


async def test_a_key_holds_for_a_day_whoever_ends_its_generation(
    requests: Requests, clock: Clock
) -> None:
    keyed = entry("r1", idempotency=Idempotency("k", "b"))
    await requests.lead(keyed)
    clock.advance(LEASE_MS / 1000 + 1)
    await requests.end(await requests.lead(entry("r2")), images=5)
    clock.advance(UNDELIVERED_REUSED_MS / 1000 + 10)
    assert isinstance(await requests.enter(replace(keyed, request="r3")), Found)


async def test_who_handed_over_is_counted_out_once(requests: Requests) -> None:
    claim = await requests.lead(entry("r1", retry_key="same"))
    for name in ("r2", "r9"):
        assert isinstance(await requests.enter(entry(name, retry_key="same")), Follow)
    await requests.end(claim, Failure())
    new = await requests.lead(entry("r2", retry_key="same"), "r1")
    await requests.leave("r1", ClientOutcome.ANSWERED)
    await requests.store.client_gone(new, "same")
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r3")), Lead)


# --- leaving


@pytest.mark.parametrize("before", [True, False], ids=["left", "never seen, and left"])
async def test_an_entering_that_comes_after_the_leaving_does_nothing(
    requests: Requests, before: bool
) -> None:
    """It lay in the socket of a server that hung."""
    if before:
        await requests.enter(entry("r1"))
    await requests.leave("r1", ClientOutcome.ANSWERED, None)
    left = await requests.left()
    assert await requests.enter(entry("r1")) is Refusal.MISSING
    assert await requests.left() == left
    assert await state(requests.store, "r1") is State.MISSING


async def test_who_leaves_without_a_place_leads_nothing(requests: Requests) -> None:
    """It never heard that it leads."""
    await requests.lead(entry("r1"))
    await requests.leave("r1", ClientOutcome.ANSWERED, None)
    assert await state(requests.store, "r1") is State.MISSING
    assert await requests.left() == [9, 20, 3, 20, 1000]


async def test_what_was_hung_up_on_is_the_next_one_s(requests: Requests) -> None:
    """After the end, in the middle of the delivery."""
    await requests.end(await requests.lead(unshared("r1")), images=5)
    await requests.leave("r1", ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r2")), Found)


async def test_what_was_hung_up_on_during_its_making_is_the_next_one_s(
    requests: Requests,
) -> None:
    claim = await requests.lead(unshared("r1"))
    await requests.store.client_gone(claim, "same")
    assert isinstance(await requests.enter(unshared("r2")), Follow)
    await requests.leave("r2", ClientOutcome.GONE)
    await requests.end(claim, images=5, client=ClientOutcome.GONE)
    assert isinstance(await requests.enter(unshared("r3")), Found)


async def test_a_leader_s_client_is_gone_once(requests: Requests) -> None:
    """However often it is told, somebody else still waits."""
    claim = await requests.lead(entry("r1"))
    await requests.enter(entry("r2"))
    for _ in range(3):
        await requests.store.client_gone(claim, None)
    await requests.end(claim, Failure(), client=ClientOutcome.GONE)
    assert await state(requests.store, "r1") is State.DEAD


async def test_what_was_delivered_is_only_a_retry_s(requests: Requests) -> None:
    await requests.end(await requests.lead(unshared("r1")), images=5)
    await requests.leave("r1")
    await requests.leave("r1", ClientOutcome.GONE)  # repeated: it had left
    assert isinstance(await requests.enter(unshared("r2")), Lead)
    assert isinstance(await requests.enter(retry("r3", retry_key="same")), Follow | Found)


async def test_an_answered_error_leaves_nothing_to_the_next(requests: Requests) -> None:
    await requests.end(await requests.lead(unshared("r1")), images=5)
    await requests.leave("r1", ClientOutcome.ANSWERED)
    assert (await requests.lead(unshared("r2"))).id == "r2"


# --- what a request with an idempotency key does to those without one


async def test_what_a_key_was_given_is_nobody_s_to_claim(requests: Requests) -> None:
    """Its first client hung up; the next request without a key is to have a picture of its own."""
    await requests.end(await requests.lead(entry("r1", retry_key="same")), completion(), images=5)
    await requests.leave("r1", ClientOutcome.GONE)
    keyed = entry("r2", retry_key="same", idempotency=Idempotency("k", "b"))
    assert isinstance(await requests.enter(keyed), Found)
    await requests.leave("r2", retry_key=keyed.retry_key)
    assert isinstance(await requests.enter(unshared("r3")), Lead)


@pytest.mark.parametrize("order", [("r1", "r2"), ("r2", "r1")], ids=["key last", "key first"])
async def test_what_a_key_waits_for_is_nobody_s_to_claim(
    requests: Requests, order: tuple[str, str]
) -> None:
    """Both hang up. The key finds it, and so does a retry of the one that has none."""
    keyed = entry("r2", retry_key="same", idempotency=Idempotency("k", "b"))
    claim = await requests.lead(entry("r1", retry_key="same"))
    assert isinstance(await requests.enter(keyed), Follow)
    await requests.end(claim, images=5)
    for name in order:
        await requests.leave(name, ClientOutcome.GONE)
    requests.limits = Limits()
    assert isinstance(await requests.enter(unshared("r3")), Lead)
    assert isinstance(await requests.enter(replace(keyed, request="r4")), Found)


async def test_a_doubt_is_told_to_who_waited_without_a_key(requests: Requests) -> None:
    """As to all others who send the same within half a minute."""
    keyed = entry("r1", retry_key="same", idempotency=Idempotency("k", "b"))
    claim = await requests.lead(keyed)
    assert isinstance(await requests.enter(entry("r2", retry_key="same")), Follow)
    await requests.end(claim, DOUBT)
    for name in ("r1", "r2"):
        await requests.leave(name, ClientOutcome.ANSWERED)
    assert isinstance(await requests.enter(entry("r3", retry_key="same")), Doubtful)


async def test_a_key_is_not_given_what_a_retry_key_finds(requests: Requests) -> None:
    await requests.end(await requests.lead(unshared("r1")), images=5)
    await requests.leave("r1", ClientOutcome.GONE)
    keyed = unshared("r2", idempotency=Idempotency("k", "b"))
    assert isinstance(await requests.enter(keyed), Lead)


# --- unknown outcomes


DOUBT = Failure(error=b"unknown", doubtful=True)


async def doubt(requests: Requests, wanted: Entry) -> None:
    claim = await requests.lead(wanted)
    await requests.end(claim, DOUBT, client=ClientOutcome.ANSWERED)


async def test_an_unknown_outcome_is_told_again_and_pays_nothing(requests: Requests) -> None:
    """To who sends the same within half a minute, marked as a retry or not."""
    await doubt(requests, unshared("r1"))
    for wanted in (unshared("r2"), unshared("r3", may_reuse_unclaimed=False), retry("r4")):
        place = await requests.enter(wanted)
        assert isinstance(place, Doubtful)
        assert (place.id, place.payload) == ("r1", b"unknown")
        await requests.leave(wanted.request, ClientOutcome.ANSWERED, None)
    assert await requests.left() == [6, 20, 3, 20, 1000]


async def test_a_doubt_ends(requests: Requests, clock: Clock) -> None:
    """After that an unmarked repeat is a new wish; a retry, or a key, is told for longer."""
    await doubt(requests, unshared("r1"))
    clock.advance(DOUBT_MS / 1000 + 1)
    assert isinstance(await requests.enter(retry("r2")), Doubtful)
    assert isinstance(await requests.enter(unshared("r3")), Lead)
    assert isinstance(await requests.enter(retry("r4")), Follow)


async def test_a_retry_is_told_of_a_doubt_until_it_is_forgotten(
    requests: Requests, clock: Clock
) -> None:
    await doubt(requests, unshared("r1"))
    clock.advance(PARTS_KEPT_MS / 1000 - 5)
    assert isinstance(await requests.enter(retry("r2")), Doubtful)
    clock.advance(10)
    assert (await requests.lead(retry("r3"))).id == "r3"


async def test_an_idempotency_key_is_told_of_a_doubt(requests: Requests, clock: Clock) -> None:
    wanted = entry("r1", idempotency=Idempotency("k", "b"))
    await doubt(requests, wanted)
    clock.advance(DOUBT_MS / 1000 + 1)
    assert isinstance(await requests.enter(replace(wanted, request="r2")), Doubtful)
    # Somebody else who wants the same pays for it.
    assert isinstance(await requests.enter(entry("r3")), Lead)
    assert isinstance(await requests.enter(replace(wanted, request="r4")), Follow)


@pytest.mark.parametrize(
    "wanted", [unshared("r2", fresh=True), retry("r2", fresh=True)], ids=["unmarked", "retry"]
)
async def test_who_wants_something_new_is_told_of_no_doubt(
    requests: Requests, wanted: Entry
) -> None:
    await doubt(requests, unshared("r1"))
    assert isinstance(await requests.enter(wanted), Lead)


async def test_a_doubt_is_dropped_by_who_leads_after_it(requests: Requests) -> None:
    await doubt(requests, unshared("r1"))
    claim = await requests.lead(retry("r2", fresh=True))
    await requests.end(claim, Failure(error=b"error"), client=ClientOutcome.ANSWERED)
    assert isinstance(await requests.enter(retry("r3")), Lead)


async def test_parts_wait_behind_a_doubt(requests: Requests, clock: Clock) -> None:
    claim = await requests.lead(unshared("r1"))
    await requests.progress(claim, 0, 1)
    await requests.end(claim, DOUBT, images=1, client=ClientOutcome.ANSWERED)
    assert isinstance(await requests.enter(unshared("r2")), Doubtful)
    clock.advance(DOUBT_MS / 1000 + 1)
    assert await requests.enter(unshared("r3")) == Lead(Leadership(SCOPE, "r1", "r3"), {0: ("u0",)})


# --- idempotency keys


@pytest.mark.parametrize("is_done", [True, False], ids=["hit", "joined"])
async def test_a_key_that_found_another_s_images_holds_for_a_day(
    requests: Requests, clock: Clock, is_done: bool
) -> None:
    short = completion(cache_ms=5_000)
    claim = await requests.lead(entry("r1"))
    if is_done:
        await requests.end(claim, short, images=5)
    wanted = entry("r2", idempotency=Idempotency("k", "b"))
    assert isinstance(await requests.enter(wanted), Found if is_done else Follow)
    if not is_done:
        await requests.end(claim, short, images=5)
    await requests.store.purge(SCOPE)
    clock.advance(UNDELIVERED_REUSED_MS / 1000 + 10)
    place = await requests.enter(replace(wanted, request="r3"))
    assert isinstance(place, Found)
    assert place.how is How.REPLAYED
    clock.advance(IDEMPOTENCY_MS / 1000 - 600)
    assert isinstance(await requests.enter(replace(wanted, request="r4")), Lead)


async def test_scopes_of_other_tenants_are_not_theirs(store: Store) -> None:
    """Two tenants of one group share generations, and no limits."""
    mine, theirs = (
        request_of(entry(name, scope="group:art"), limits=LIMITS, images=IMAGES, cost=COST)
        for name in ("r1", "r2")
    )
    theirs = replace(theirs, take=replace(theirs.take, tenant="other"))
    assert isinstance((await store.enter(mine)).place, Lead)
    entered = await store.enter(theirs)
    assert isinstance(entered.place, Follow)
    assert remaining(entered.verdict) == [9, 20, 2, 20, 1000]
    assert await enter(store, entry("r3")) == Lead(Leadership(SCOPE, "r3", "r3"), {})


async def test_an_adopted_result_is_its_own_again_where_the_answer_was_lost(
    requests: Requests,
) -> None:
    """The same request entering twice pays for nothing, though it is marked as no retry."""
    await requests.end(await requests.lead(unshared("r1")), images=5)
    await requests.leave("r1", ClientOutcome.GONE)
    adopted = await requests.enter(unshared("r2"))
    assert isinstance(adopted, Found)
    again = await requests.enter(unshared("r2"))
    assert isinstance(again, Found)
    assert (again.id, again.how) == (adopted.id, adopted.how)
