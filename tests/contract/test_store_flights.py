"""What every store decides for generations, the same in memory and on each version of Redis."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.store.base import Store
from gateway.store.generations import (
    MARGIN_MS,
    PARTS_KEPT_MS,
    SHARED_ERROR_MS,
    Claim,
    Failure,
    Found,
    How,
    Idempotency,
    Joined,
    Led,
    Phase,
    Refusal,
    Standing,
)
from tests.contract.stores import Clock, clock, store

__all__ = ["clock", "store"]

from tests.contract.flights import (
    DAY_MS,
    LATE_MS,
    LEASE_MS,
    SCOPE,
    ending,
    entry,
    found,
    lead,
    phase,
    retry,
    unshared,
)

# --- one generation for identical requests


async def test_the_first_leads_and_the_others_join(store: Store) -> None:
    first = await store.begin(entry("r1"), LEASE_MS)
    second = await store.begin(entry("r2"), LEASE_MS)
    assert first == Led(Claim(SCOPE, "r1", "r1"), {})
    assert second == Joined("r1", How.JOINED)


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
    mine = entry("r1", idempotency=Idempotency("k", "b"), adoption="same")
    await store.finish(await lead(store, mine), ending())
    other = replace(mine, scope="tenant:other", request="r2", is_retry=True)
    assert (await lead(store, other)).id == "r2"


async def test_a_result_is_found_by_its_cache_key(store: Store, clock: Clock) -> None:
    await store.finish(await lead(store, entry("r1")), ending(b"one"))
    clock.advance(5)
    begun = await store.begin(entry("r2"), LEASE_MS)
    assert isinstance(begun, Found)
    assert (begun.id, begun.result, begun.how) == ("r1", b"one", How.HIT)
    assert 5000 - LATE_MS <= begun.age_ms <= 5000 + LATE_MS


async def test_a_result_is_found_until_the_policy_ends_it(store: Store, clock: Clock) -> None:
    await store.finish(await lead(store, entry("r1")), ending(cache_ms=30_000))
    clock.advance(29)
    await found(store, entry("r2"))
    clock.advance(2)
    await lead(store, entry("r3"))


async def test_a_result_is_found_no_longer_than_its_urls_live(store: Store, clock: Clock) -> None:
    await store.finish(await lead(store, entry("r1")), ending(life_ms=MARGIN_MS + 30_000))
    clock.advance(29)
    await found(store, entry("r2"))
    clock.advance(2)
    await lead(store, entry("r3"))


async def test_a_result_whose_urls_are_dying_is_not_served(store: Store) -> None:
    await store.finish(await lead(store, entry("r1")), ending(life_ms=MARGIN_MS - 1000))
    await lead(store, entry("r2"))


async def test_held_bytes_outlive_the_urls(store: Store, clock: Clock) -> None:
    """Except for who wants URLs."""
    await store.finish(await lead(store, entry("r1")), ending(life_ms=90_000))
    await store.hold(SCOPE, "r1", DAY_MS)
    clock.advance(3600)
    await found(store, entry("r2"))
    await lead(store, entry("r3", needs_url=True))


async def test_a_result_that_is_not_to_be_kept_ends_the_sharing(store: Store) -> None:
    await store.finish(await lead(store, entry("r1")), ending(cache_ms=0))
    await lead(store, entry("r2"))


async def test_max_age_refuses_older_results(store: Store, clock: Clock) -> None:
    await store.finish(await lead(store, entry("r1")), ending())
    clock.advance(10)
    await found(store, entry("r2", max_age_ms=11_000))
    assert (await lead(store, entry("r3", max_age_ms=9_000))).id == "r3"


async def test_an_old_result_stays_while_a_younger_one_is_made(store: Store, clock: Clock) -> None:
    await store.finish(await lead(store, entry("r1")), ending(b"old"))
    clock.advance(10)
    younger = await lead(store, entry("r2", max_age_ms=1000))
    assert await found(store, entry("r3")) == (b"old", How.HIT)
    assert await store.begin(entry("r4", max_age_ms=1000), LEASE_MS) == Joined("r2", How.JOINED)
    await store.finish(younger, ending(b"new"))
    assert await found(store, entry("r5")) == (b"new", How.HIT)


async def test_no_cache_leads_and_replaces_the_result(store: Store) -> None:
    await store.finish(await lead(store, entry("r1")), ending(b"old"))
    fresh = await lead(store, entry("r2", fresh=True))
    await store.finish(fresh, ending(b"new"))
    assert await found(store, entry("r3")) == (b"new", How.HIT)


async def test_no_cache_joins_nobody_and_leaves_others_where_they_are(store: Store) -> None:
    await lead(store, entry("r1"))
    await lead(store, entry("r2", fresh=True))
    assert await store.begin(entry("r3"), LEASE_MS) == Joined("r1", How.JOINED)


async def test_only_if_cached_neither_leads_nor_waits(store: Store) -> None:
    only = entry("r1", only_if_cached=True)
    assert await store.begin(only, LEASE_MS) is Refusal.MISSING
    claim = await lead(store, entry("r2"))
    assert await store.begin(only, LEASE_MS) is Refusal.MISSING
    await store.finish(claim, ending())
    assert await found(store, only) == (b"result", How.HIT)


# --- what has become of it


async def test_followers_see_the_result(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    assert await phase(store, "r1") is Phase.RUNNING
    await store.finish(claim, ending(b"one"))
    seen, missing = await store.look(SCOPE, ["r1", "r9"])
    assert (seen.phase, seen.payload) == (Phase.DONE, b"one")
    assert missing.phase is Phase.MISSING


async def test_followers_are_given_a_result_until_its_urls_die(store: Store, clock: Clock) -> None:
    """They have waited for it: the margin is for those who come later."""
    await store.finish(await lead(store, entry("r1")), ending(life_ms=30_000))
    clock.advance(29)
    assert await phase(store, "r1") is Phase.DONE
    clock.advance(2)
    assert await phase(store, "r1") is Phase.DEAD


async def test_a_follower_that_looks_again_is_given_it_too(store: Store) -> None:
    await store.finish(await lead(store, entry("r1")), ending(life_ms=30_000))
    begun = await store.begin(entry("r2"), LEASE_MS, "r1")
    assert isinstance(begun, Found)
    await lead(store, entry("r3"))


async def test_followers_see_the_error_for_a_while(store: Store, clock: Clock) -> None:
    await store.fail(await lead(store, entry("r1")), Failure({}, b"error"))
    (seen,) = await store.look(SCOPE, ["r1"])
    assert (seen.phase, seen.payload) == (Phase.FAILED, b"error")
    clock.advance(SHARED_ERROR_MS / 1000 + 1)
    assert await phase(store, "r1") is Phase.DEAD


async def test_a_failed_generation_is_taken_over_at_once(store: Store) -> None:
    """An error is never kept for the next request."""
    await store.fail(await lead(store, entry("r1")), Failure({}, b"error"))
    assert await lead(store, entry("r2")) == Claim(SCOPE, "r1", "r2")
    assert await phase(store, "r1") is Phase.RUNNING


async def test_who_steps_down_is_followed_by_one_of_those_who_wait(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    for request in ("r2", "r3"):
        await store.begin(entry(request), LEASE_MS)
    await store.fail(claim, Failure({}, None))
    assert await phase(store, "r1") is Phase.DEAD
    assert await lead(store, entry("r2"), follows="r1") == Claim(SCOPE, "r1", "r2")
    again = await store.begin(entry("r3"), LEASE_MS, "r1")
    assert again == Joined("r1", How.JOINED)


async def test_a_leader_whose_lease_ended_is_followed_by_exactly_one(
    store: Store, clock: Clock
) -> None:
    await lead(store, entry("r1"))
    for request in ("r2", "r3"):
        await store.begin(entry(request), LEASE_MS)
    clock.advance(LEASE_MS / 1000 + 1)
    assert await phase(store, "r1") is Phase.DEAD
    begun = [await store.begin(entry(request), LEASE_MS, "r1") for request in ("r2", "r3")]
    assert begun == [Led(Claim(SCOPE, "r1", "r2"), {}), Joined("r1", How.JOINED)]


@pytest.mark.parametrize("others", [0, 1])
async def test_those_who_wait_are_still_counted_after_a_take_over(
    store: Store, clock: Clock, others: int
) -> None:
    await lead(store, entry("r1"))
    for number in range(1 + others):
        await store.begin(entry(f"f{number}"), LEASE_MS)
    clock.advance(LEASE_MS / 1000 + 1)
    successor = await lead(store, entry("f0"), follows="r1")
    assert await store.abandon(successor, None) is (others == 0)


async def test_a_lease_that_is_renewed_does_not_end(store: Store, clock: Clock) -> None:
    claim = await lead(store, entry("r1"))
    for _ in range(5):
        clock.advance(LEASE_MS / 1000 - 1)
        assert await store.keep_alive([claim], LEASE_MS) == [Standing.KEPT]
    assert isinstance(await store.begin(entry("r2"), LEASE_MS), Joined)


async def test_many_leases_are_renewed_at_once(store: Store) -> None:
    mine = await lead(store, entry("r1", cache_key="a"))
    lost = Claim(SCOPE, "r8", "r8")
    other = Claim(SCOPE, (await lead(store, entry("r2", cache_key="b"))).id, "r9")
    standings = await store.keep_alive([mine, lost, other], LEASE_MS)
    assert standings == [Standing.KEPT, Standing.MISSING, Standing.FENCED]
    assert await store.keep_alive([], LEASE_MS) == []


# --- the fence


async def test_a_leader_that_was_replaced_changes_nothing(store: Store, clock: Clock) -> None:
    old = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    new = await lead(store, entry("r2"))
    assert await store.finish(old, ending(b"old")) is Standing.FENCED
    assert await store.fail(old, Failure({}, b"old")) is Standing.FENCED
    assert await store.abandon(old, None)
    assert await store.keep_alive([old], LEASE_MS) == [Standing.FENCED]
    assert await phase(store, "r1") is Phase.RUNNING
    assert await store.finish(new, ending(b"new")) is Standing.KEPT
    assert await store.finish(old, ending(b"old")) is Standing.FENCED
    assert await found(store, entry("r3")) == (b"new", How.HIT)


async def test_a_leader_that_comes_back_in_time_goes_on(store: Store, clock: Clock) -> None:
    """Nobody has taken over."""
    claim = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    assert await store.keep_alive([claim], LEASE_MS) == [Standing.KEPT]
    assert isinstance(await store.begin(entry("r2"), LEASE_MS), Joined)


async def test_what_a_replaced_leader_paid_for_is_kept(store: Store, clock: Clock) -> None:
    """The parts that its successor lacks, and no others."""
    old = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    new = await lead(store, entry("r2"))
    await store.progress(new, 0, ["new"])
    assert await store.progress(old, 0, ["old"]) is Standing.FENCED
    assert await store.progress(old, 1, ["late"]) is Standing.FENCED
    await store.fail(new, Failure({}, b"error"))
    begun = await store.begin(entry("r3"), LEASE_MS)
    assert isinstance(begun, Led)
    assert begun.parts == {0: ("new",), 1: ("late",)}


async def test_endings_may_be_repeated(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    assert await store.finish(claim, ending(b"one")) is Standing.KEPT
    assert await store.finish(claim, ending(b"two")) is Standing.KEPT
    assert await store.fail(claim, Failure({0: ("u",)}, b"error")) is Standing.KEPT
    assert await found(store, entry("r2")) == (b"one", How.HIT)


# --- parts


async def test_the_next_leader_resumes_the_parts(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    await store.progress(claim, 0, ["a"])
    await store.progress(claim, 0, ["a", "b"])
    await store.fail(claim, Failure({1: ("c",)}, b"error"))
    begun = await store.begin(entry("r2"), LEASE_MS)
    assert begun == Led(Claim(SCOPE, "r1", "r2"), {0: ("a", "b"), 1: ("c",)})


async def test_parts_are_resumed_only_under_the_same_plan(store: Store) -> None:
    claim = await lead(store, entry("r1", idempotency=Idempotency("k", "b")))
    await store.fail(claim, Failure({0: ("a",)}, b"error"))
    other = entry("r2", idempotency=Idempotency("k", "b"), plan="other", cache_key=None)
    assert await store.begin(other, LEASE_MS) == Led(Claim(SCOPE, "r1", "r2"), {})


async def test_parts_wait_for_a_while(store: Store, clock: Clock) -> None:
    await store.fail(await lead(store, entry("r1")), Failure({0: ("a",)}, b"error"))
    clock.advance(PARTS_KEPT_MS / 1000 - 5)
    claim = await lead(store, entry("r2"))
    await store.fail(claim, Failure({}, b"error"))
    clock.advance(PARTS_KEPT_MS / 1000 + 15)
    assert await store.begin(entry("r3"), LEASE_MS) == Led(Claim(SCOPE, "r3", "r3"), {})


async def test_a_dead_leader_s_parts_are_resumed(store: Store, clock: Clock) -> None:
    await store.progress(await lead(store, entry("r1")), 0, ["a"])
    clock.advance(LEASE_MS / 1000 + 1)
    assert await store.begin(entry("r2"), LEASE_MS) == Led(Claim(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_failed_request_without_a_key_is_resumed_by_the_same_body(store: Store) -> None:
    """Nobody has been given those pictures: they are as new as any."""
    claim = await lead(store, unshared("r1"))
    await store.fail(claim, Failure({0: ("a",)}, b"error", "same"))
    assert await store.begin(unshared("r2"), LEASE_MS) == Led(Claim(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_failed_request_that_paid_nothing_leaves_nothing(store: Store) -> None:
    await store.fail(await lead(store, unshared("r1")), Failure({}, b"error", "same"))
    assert (await lead(store, unshared("r2"))).id == "r2"
    assert (await lead(store, retry("r3"))).id == "r3"
