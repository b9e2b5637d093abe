"""What every store decides for generations, the same in memory and on each version of Redis."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.store import Store
from gateway.store.generations import (
    MARGIN_MS,
    PARTS_KEPT_MS,
    SHARED_ERROR_MS,
    Failure,
    FencingResult,
    Follow,
    Found,
    How,
    Idempotency,
    Lead,
    Leadership,
    Refusal,
    State,
)
from tests.contract.stores import Clock, clock, store

__all__ = ["clock", "store"]

from tests.contract.generations import (
    DAY_MS,
    LEASE_MS,
    SCOPE,
    completion,
    end,
    enter,
    entry,
    found,
    lead,
    progress,
    retry,
    state,
    unshared,
)

# --- one generation for identical requests


async def test_the_first_leads_and_the_others_join(store: Store) -> None:
    first = await enter(store, entry("r1"))
    second = await enter(store, entry("r2"))
    assert first == Lead(Leadership(SCOPE, "r1", "r1"), {})
    assert second == Follow("r1", How.JOINED)


async def test_a_begin_that_is_repeated_leads_again(store: Store) -> None:
    """Its answer was lost on the way, and it must not wait for itself."""
    for wanted in (entry("r1"), unshared("r2"), entry("r3", idempotency=Idempotency("k", "b"))):
        await lead(store, replace(wanted, cache_key=wanted.cache_key and wanted.request))
        await lead(store, replace(wanted, cache_key=wanted.cache_key and wanted.request))


async def test_requests_without_a_key_share_nothing(store: Store) -> None:
    await lead(store, entry("r1", cache_key=None))
    await lead(store, entry("r2", cache_key=None))


async def test_scopes_see_nothing_of_each_other(store: Store) -> None:
    """Cache key, idempotency key and adoption are all the same, and yet not found."""
    mine = entry("r1", idempotency=Idempotency("k", "b"), retry_key="same")
    await end(store, await lead(store, mine), completion())
    other = replace(mine, scope="tenant:other", request="r2", is_retry=True)
    assert (await lead(store, other)).id == "r2"


async def test_a_result_is_found_by_its_cache_key(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), completion(b"one"))
    clock.advance(5)
    begun = await enter(store, entry("r2"))
    assert isinstance(begun, Found)
    assert (begun.id, begun.result, begun.how) == ("r1", b"one", How.HIT)
    assert begun.age_ms == pytest.approx(5000, abs=1)


async def test_a_result_is_found_until_the_policy_ends_it(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), completion(cache_ms=30_000))
    clock.advance(29)
    await found(store, entry("r2"))
    clock.advance(2)
    await lead(store, entry("r3"))


async def test_a_result_is_found_no_longer_than_its_urls_live(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), completion(life_ms=MARGIN_MS + 30_000))
    clock.advance(29)
    await found(store, entry("r2"))
    clock.advance(2)
    await lead(store, entry("r3"))


async def test_a_result_whose_urls_are_dying_is_not_served(store: Store) -> None:
    await end(store, await lead(store, entry("r1")), completion(life_ms=MARGIN_MS - 1000))
    await lead(store, entry("r2"))


async def test_held_bytes_outlive_the_urls(store: Store, clock: Clock) -> None:
    """Except for who wants URLs."""
    await end(store, await lead(store, entry("r1")), completion(life_ms=90_000))
    await store.pin_images(SCOPE, "r1", DAY_MS)
    clock.advance(3600)
    await found(store, entry("r2"))
    await lead(store, entry("r3", needs_url=True))


async def test_a_result_that_is_not_to_be_kept_ends_the_sharing(store: Store) -> None:
    await end(store, await lead(store, entry("r1")), completion(cache_ms=0))
    await lead(store, entry("r2"))


async def test_max_age_refuses_older_results(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), completion())
    clock.advance(10)
    await found(store, entry("r2", max_age_ms=11_000))
    assert (await lead(store, entry("r3", max_age_ms=9_000))).id == "r3"


async def test_an_old_result_stays_while_a_younger_one_is_made(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), completion(b"old"))
    clock.advance(10)
    younger = await lead(store, entry("r2", max_age_ms=1000))
    assert await found(store, entry("r3")) == (b"old", How.HIT)
    assert await enter(store, entry("r4", max_age_ms=1000)) == Follow("r2", How.JOINED)
    await end(store, younger, completion(b"new"))
    assert await found(store, entry("r5")) == (b"new", How.HIT)


async def test_no_cache_leads_and_replaces_the_result(store: Store) -> None:
    await end(store, await lead(store, entry("r1")), completion(b"old"))
    fresh = await lead(store, entry("r2", fresh=True))
    await end(store, fresh, completion(b"new"))
    assert await found(store, entry("r3")) == (b"new", How.HIT)


async def test_no_cache_joins_nobody_and_leaves_others_where_they_are(store: Store) -> None:
    await lead(store, entry("r1"))
    await lead(store, entry("r2", fresh=True))
    assert await enter(store, entry("r3")) == Follow("r1", How.JOINED)


async def test_only_if_cached_neither_leads_nor_waits(store: Store) -> None:
    only = entry("r1", only_if_cached=True)
    assert await enter(store, only) is Refusal.MISSING
    claim = await lead(store, entry("r2"))
    assert await enter(store, only) is Refusal.MISSING
    await end(store, claim, completion())
    assert await found(store, only) == (b"result", How.HIT)


# --- what has become of it


async def test_followers_see_the_result(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    assert await state(store, "r1") is State.RUNNING
    await end(store, claim, completion(b"one"))
    seen, missing = await store.poll(SCOPE, ["r1", "r9"])
    assert (seen.state, seen.payload) == (State.DONE, b"one")
    assert missing.state is State.MISSING


async def test_followers_are_given_a_result_until_its_urls_die(store: Store, clock: Clock) -> None:
    """They have waited for it: the margin is for those who come later."""
    await end(store, await lead(store, entry("r1")), completion(life_ms=30_000))
    clock.advance(29)
    assert await state(store, "r1") is State.DONE
    clock.advance(2)
    assert await state(store, "r1") is State.DEAD


async def test_a_follower_that_looks_again_is_given_it_too(store: Store) -> None:
    await end(store, await lead(store, entry("r1")), completion(life_ms=30_000))
    begun = await enter(store, entry("r2"), "r1")
    assert isinstance(begun, Found)
    await lead(store, entry("r3"))


async def test_followers_see_the_error_for_a_while(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), Failure({}, b"error"))
    (seen,) = await store.poll(SCOPE, ["r1"])
    assert (seen.state, seen.payload) == (State.FAILED, b"error")
    clock.advance(SHARED_ERROR_MS / 1000 + 1)
    assert await state(store, "r1") is State.DEAD


async def test_a_failed_generation_is_taken_over_at_once(store: Store) -> None:
    """An error is never kept for the next request."""
    await end(store, await lead(store, entry("r1")), Failure({}, b"error"))
    assert await lead(store, entry("r2")) == Leadership(SCOPE, "r1", "r2")
    assert await state(store, "r1") is State.RUNNING


async def test_who_steps_down_is_followed_by_one_of_those_who_wait(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    for request in ("r2", "r3"):
        await enter(store, entry(request))
    await end(store, claim, Failure({}, None))
    assert await state(store, "r1") is State.DEAD
    assert await lead(store, entry("r2"), follows="r1") == Leadership(SCOPE, "r1", "r2")
    again = await enter(store, entry("r3"), "r1")
    assert again == Follow("r1", How.JOINED)


async def test_a_leader_whose_lease_ended_is_followed_by_exactly_one(
    store: Store, clock: Clock
) -> None:
    await lead(store, entry("r1"))
    for request in ("r2", "r3"):
        await enter(store, entry(request))
    clock.advance(LEASE_MS / 1000 + 1)
    assert await state(store, "r1") is State.DEAD
    begun = [await enter(store, entry(request), "r1") for request in ("r2", "r3")]
    assert begun == [Lead(Leadership(SCOPE, "r1", "r2"), {}), Follow("r1", How.JOINED)]


@pytest.mark.parametrize("others", [0, 1])
async def test_those_who_wait_are_still_counted_after_a_take_over(
    store: Store, clock: Clock, others: int
) -> None:
    await lead(store, entry("r1"))
    for number in range(1 + others):
        await enter(store, entry(f"f{number}"))
    clock.advance(LEASE_MS / 1000 + 1)
    successor = await lead(store, entry("f0"), follows="r1")
    await end(store, successor, Failure())
    assert await state(store, "r1") is (State.DEAD if others else State.MISSING)


async def test_a_lease_that_is_renewed_does_not_end(store: Store, clock: Clock) -> None:
    claim = await lead(store, entry("r1"))
    for _ in range(5):
        clock.advance(LEASE_MS / 1000 - 1)
        assert await store.renew_leaderships([claim], LEASE_MS) == [FencingResult.KEPT]
    assert isinstance(await enter(store, entry("r2")), Follow)


async def test_many_leases_are_renewed_at_once(store: Store) -> None:
    mine = await lead(store, entry("r1", cache_key="a"))
    lost = Leadership(SCOPE, "r8", "r8")
    other = Leadership(SCOPE, (await lead(store, entry("r2", cache_key="b"))).id, "r9")
    standings = await store.renew_leaderships([mine, lost, other], LEASE_MS)
    assert standings == [FencingResult.KEPT, FencingResult.MISSING, FencingResult.FENCED]
    assert await store.renew_leaderships([], LEASE_MS) == []


# --- the fence


async def test_a_leader_that_was_replaced_changes_nothing(store: Store, clock: Clock) -> None:
    old = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    new = await lead(store, entry("r2"))
    assert await end(store, old, completion(b"old")) is FencingResult.FENCED
    assert await end(store, old, Failure({}, b"old")) is FencingResult.FENCED
    assert await end(store, old, Failure()) is FencingResult.FENCED
    assert await store.renew_leaderships([old], LEASE_MS) == [FencingResult.FENCED]
    assert await state(store, "r1") is State.RUNNING
    assert await end(store, new, completion(b"new")) is FencingResult.KEPT
    assert await end(store, old, completion(b"old")) is FencingResult.FENCED
    assert await found(store, entry("r3")) == (b"new", How.HIT)


async def test_a_leader_that_comes_back_in_time_goes_on(store: Store, clock: Clock) -> None:
    """Nobody has taken over."""
    claim = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    assert await store.renew_leaderships([claim], LEASE_MS) == [FencingResult.KEPT]
    assert isinstance(await enter(store, entry("r2")), Follow)


async def test_what_a_replaced_leader_paid_for_is_kept(store: Store, clock: Clock) -> None:
    """The parts that its successor lacks, and no others."""
    old = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    new = await lead(store, entry("r2"))
    await progress(store, new, 0, ["new"])
    assert await progress(store, old, 0, ["old"]) is FencingResult.FENCED
    assert await progress(store, old, 1, ["late"]) is FencingResult.FENCED
    await end(store, new, Failure({}, b"error"))
    begun = await enter(store, entry("r3"))
    assert isinstance(begun, Lead)
    assert begun.parts == {0: ("new",), 1: ("late",)}


async def test_endings_may_be_repeated(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    assert await end(store, claim, completion(b"one")) is FencingResult.KEPT
    assert await end(store, claim, completion(b"two")) is FencingResult.KEPT
    assert await end(store, claim, Failure({0: ("u",)}, b"error")) is FencingResult.KEPT
    assert await found(store, entry("r2")) == (b"one", How.HIT)


# --- parts


async def test_the_next_leader_resumes_the_parts(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    await progress(store, claim, 0, ["a"])
    await progress(store, claim, 0, ["a", "b"])
    await end(store, claim, Failure({1: ("c",)}, b"error"))
    begun = await enter(store, entry("r2"))
    assert begun == Lead(Leadership(SCOPE, "r1", "r2"), {0: ("a", "b"), 1: ("c",)})


async def test_parts_are_resumed_only_under_the_same_plan(store: Store) -> None:
    claim = await lead(store, entry("r1", idempotency=Idempotency("k", "b")))
    await end(store, claim, Failure({0: ("a",)}, b"error"))
    other = entry("r2", idempotency=Idempotency("k", "b"), plan_hash="other", cache_key=None)
    assert await enter(store, other) == Lead(Leadership(SCOPE, "r1", "r2"), {})


async def test_parts_wait_for_a_while(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, entry("r1")), Failure({0: ("a",)}, b"error"))
    clock.advance(PARTS_KEPT_MS / 1000 - 5)
    claim = await lead(store, entry("r2"))
    await end(store, claim, Failure({}, b"error"))
    clock.advance(PARTS_KEPT_MS / 1000 + 15)
    assert await enter(store, entry("r3")) == Lead(Leadership(SCOPE, "r3", "r3"), {})


async def test_a_dead_leader_s_parts_are_resumed(store: Store, clock: Clock) -> None:
    await progress(store, await lead(store, entry("r1")), 0, ["a"])
    clock.advance(LEASE_MS / 1000 + 1)
    assert await enter(store, entry("r2")) == Lead(Leadership(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_failed_request_without_a_key_is_resumed_by_the_same_body(store: Store) -> None:
    """Nobody has been given those pictures: they are as new as any."""
    claim = await lead(store, unshared("r1"))
    await end(store, claim, Failure({0: ("a",)}, b"error"), retry_key="same")
    assert await enter(store, unshared("r2")) == Lead(Leadership(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_failed_request_that_paid_nothing_leaves_nothing(store: Store) -> None:
    await end(store, await lead(store, unshared("r1")), Failure({}, b"error"), retry_key="same")
    assert (await lead(store, retry("r2"))).id == "r2"
