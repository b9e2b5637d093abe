"""What every store decides for generations, the same in memory and on each version of Redis."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.store.base import Store
from gateway.store.flights import (
    CANDIDATES,
    EXCUSE_MS,
    IDEMPOTENCY_MS,
    MARGIN_MS,
    PARTS_KEPT_MS,
    SHARED_ERROR_MS,
    Claim,
    Departure,
    Ending,
    Entry,
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

LEASE_MS = 10_000
DAY_MS = 86_400_000
LATE_MS = 400
"""What a command may have taken on a busy machine."""
SCOPE = "tenant:acme"


def entry(request: str, **changes: object) -> Entry:
    """A request that shares its result by a cache key."""
    base = Entry(scope=SCOPE, request=request, plan="plan", images=1, cache_key="key")
    return replace(base, **changes)


def unshared(request: str, **changes: object) -> Entry:
    """A request that only its own retry may find."""
    return entry(request, **{"cache_key": None, "adoption": "same", **changes})


def retry(request: str, **changes: object) -> Entry:
    return unshared(request, is_retry=True, **changes)


def ending(result: bytes = b"result", **changes: object) -> Ending:
    base = Ending(result, life_ms=DAY_MS, keep_ms=600_000, cache_key="key", cache_ms=DAY_MS)
    return replace(base, **changes)


UNCACHED = ending(cache_key=None, cache_ms=0)


async def lead(store: Store, wanted: Entry, follows: str | None = None) -> Claim:
    begun = await store.begin(wanted, LEASE_MS, follows)
    assert isinstance(begun, Led), begun
    return begun.claim


async def found(store: Store, wanted: Entry) -> tuple[bytes, How]:
    begun = await store.begin(wanted, LEASE_MS)
    assert isinstance(begun, Found), begun
    return begun.result, begun.how


async def phase(store: Store, id_: str) -> Phase:
    (sight,) = await store.look(SCOPE, [id_])
    return sight.phase


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


# --- idempotency keys


def keyed(request: str, body: str = "body", **changes: object) -> Entry:
    return entry(request, cache_key=None, idempotency=Idempotency("key", body), **changes)


async def test_a_repeat_joins_and_then_is_given_the_answer_again(
    store: Store, clock: Clock
) -> None:
    claim = await lead(store, keyed("r1"))
    assert await store.begin(keyed("r2"), LEASE_MS) == Joined("r1", How.REPLAYED)
    await store.finish(claim, ending(b"one", cache_key=None, cache_ms=0, keep_ms=IDEMPOTENCY_MS))
    clock.advance(3600)
    assert await found(store, keyed("r3")) == (b"one", How.REPLAYED)


async def test_another_body_is_a_conflict(store: Store) -> None:
    claim = await lead(store, keyed("r1"))
    assert await store.begin(keyed("r2", "other"), LEASE_MS) is Refusal.CONFLICT
    await store.finish(claim, UNCACHED)
    assert await store.begin(keyed("r3", "other"), LEASE_MS) is Refusal.CONFLICT


async def test_a_key_holds_for_a_day(store: Store, clock: Clock) -> None:
    long = ending(life_ms=7 * DAY_MS, keep_ms=7 * DAY_MS, cache_key=None, cache_ms=0)
    await store.finish(await lead(store, keyed("r1")), long)
    clock.advance(86_399)
    await found(store, keyed("r2"))
    clock.advance(2)
    assert (await lead(store, keyed("r3", "other"))).id == "r3"


async def test_a_failed_request_may_be_repeated_under_its_key(store: Store) -> None:
    await store.fail(await lead(store, keyed("r1")), Failure({0: ("a",)}, b"error"))
    assert await store.begin(keyed("r2"), LEASE_MS) == Led(Claim(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_key_binds_to_what_the_cache_gave(store: Store, clock: Clock) -> None:
    """A repeat is given the same pictures, though the cache has moved on."""
    await store.finish(
        await lead(store, entry("r1")), ending(b"one", cache_ms=60_000, keep_ms=IDEMPOTENCY_MS)
    )
    wanted = entry("r2", idempotency=Idempotency("key", "body"))
    assert await found(store, wanted) == (b"one", How.HIT)
    await store.finish(await lead(store, entry("r3", fresh=True)), ending(b"two"))
    clock.advance(120)
    assert await found(store, replace(wanted, request="r4")) == (b"one", How.REPLAYED)


async def test_no_cache_does_not_undo_a_key(store: Store) -> None:
    await store.finish(await lead(store, keyed("r1")), UNCACHED)
    assert await found(store, keyed("r2", fresh=True)) == (b"result", How.REPLAYED)


async def test_a_key_is_the_only_way_to_its_generation(store: Store) -> None:
    """Two requests with different keys are two requests, whatever their bodies."""
    await lead(store, keyed("r1", adoption="same"))
    await lead(store, retry("r2"))
    other = retry("r3", idempotency=Idempotency("other", "body"))
    await lead(store, other)


# --- adoption


async def test_a_retry_adopts_what_is_running(store: Store) -> None:
    await lead(store, unshared("r1"))
    assert await store.begin(retry("r2"), LEASE_MS) == Joined("r1", How.ADOPTED)


async def test_a_retry_adopts_what_nobody_was_given(store: Store, clock: Clock) -> None:
    await store.finish(await lead(store, unshared("r1")), UNCACHED)
    clock.advance(590)
    assert await found(store, retry("r2")) == (b"result", How.ADOPTED)
    clock.advance(20)
    assert (await lead(store, retry("r3"))).id == "r3"


async def test_a_retry_adopts_an_answer_that_was_lost_on_its_way(
    store: Store, clock: Clock
) -> None:
    claim = await lead(store, unshared("r1"))
    await store.finish(claim, UNCACHED)
    await store.depart(claim, "same", Departure.DELIVERED)
    clock.advance(55)
    assert await found(store, retry("r2")) == (b"result", How.ADOPTED)
    clock.advance(10)
    assert (await lead(store, retry("r3"))).id == "r3"


async def test_who_is_no_retry_adopts_nothing_that_somebody_waits_for(store: Store) -> None:
    """An unseeded request expects a new picture."""
    claim = await lead(store, unshared("r1"))
    assert (await lead(store, unshared("r2"))).id == "r2"
    await store.finish(claim, UNCACHED)
    assert (await lead(store, unshared("r3"))).id == "r3"


async def test_what_its_client_let_go_belongs_to_the_next_identical_request(store: Store) -> None:
    """A client that hangs up and asks again need not be an SDK."""
    claim = await lead(store, unshared("r1"))
    await store.depart(claim, "same", Departure.LET_GO)
    assert await store.begin(unshared("r2"), LEASE_MS) == Joined("r1", How.ADOPTED)
    assert (await lead(store, unshared("r3"))).id == "r3"


@pytest.mark.parametrize("changes", [{"takes_orphans": False}, {"fresh": True}], ids=str)
async def test_unless_it_wants_something_new(store: Store, changes: dict[str, bool]) -> None:
    claim = await lead(store, unshared("r1"))
    await store.depart(claim, "same", Departure.LET_GO)
    assert (await lead(store, unshared("r2", **changes))).id == "r2"
    assert isinstance(await store.begin(retry("r3", **changes), LEASE_MS), Joined)


async def test_retries_share_out_what_their_clients_let_go(store: Store) -> None:
    claims = [await lead(store, unshared(f"r{number}")) for number in range(4)]
    for claim in claims[1:3]:
        await store.depart(claim, "same", Departure.LET_GO)
    adopted = [await store.begin(retry(f"a{number}"), LEASE_MS) for number in range(2)]
    assert {one.id for one in adopted if isinstance(one, Joined)} == {"r1", "r2"}


async def test_retries_share_out_what_is_running(store: Store, clock: Clock) -> None:
    for number in range(3):
        await lead(store, unshared(f"r{number}"))
        clock.advance(1)
    adopted = [await store.begin(retry(f"a{number}"), LEASE_MS) for number in range(4)]
    ids = [one.id for one in adopted if isinstance(one, Joined)]
    assert ids == ["r2", "r1", "r0", "r2"]


async def test_a_retry_that_hangs_up_leaves_it_to_the_next(store: Store) -> None:
    claim = await lead(store, unshared("r1"))
    await store.depart(claim, "same", Departure.LET_GO)
    await store.begin(retry("r2"), LEASE_MS)
    await lead(store, unshared("r3"))
    await store.depart(Claim(SCOPE, "r1", "r2"), "same", Departure.LET_GO)
    assert await store.begin(retry("r4"), LEASE_MS) == Joined("r1", How.ADOPTED)


async def test_a_retry_of_an_answered_error_is_a_new_request(store: Store, clock: Clock) -> None:
    """Somebody else is waiting for the identical one that runs."""
    await lead(store, unshared("r1"))
    failed = await lead(store, unshared("r2"))
    await store.fail(failed, Failure({}, b"error", "same"))
    await store.excuse(SCOPE, "same", "r3")
    await lead(store, retry("r4"))
    await lead(store, retry("r5"))
    assert isinstance(await store.begin(retry("r6"), LEASE_MS), Joined)
    await store.excuse(SCOPE, "same", "r7")
    clock.advance(EXCUSE_MS / 1000 + 1)
    assert isinstance(await store.begin(retry("r8"), LEASE_MS), Led | Joined)


async def test_an_error_does_not_come_between_a_retry_and_what_it_let_go(store: Store) -> None:
    claim = await lead(store, unshared("r1"))
    await store.depart(claim, "same", Departure.LET_GO)
    await store.excuse(SCOPE, "same", "r2")
    assert await store.begin(retry("r3"), LEASE_MS) == Joined("r1", How.ADOPTED)


async def test_a_retry_takes_over_from_a_dead_leader(store: Store, clock: Clock) -> None:
    await store.progress(await lead(store, unshared("r1")), 0, ["a"])
    clock.advance(LEASE_MS / 1000 + 1)
    assert await store.begin(retry("r2"), LEASE_MS) == Led(Claim(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_result_in_the_cache_goes_before_a_take_over(store: Store, clock: Clock) -> None:
    """What costs nothing goes first."""
    await lead(store, unshared("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    await store.finish(await lead(store, entry("r2")), ending())
    assert await found(store, retry("r3", cache_key="key")) == (b"result", How.HIT)


async def test_of_very_many_identical_requests_a_retry_still_finds_one(store: Store) -> None:
    for number in range(CANDIDATES * 5):
        await lead(store, unshared(f"r{number}"))
    for number in range(CANDIDATES * 2):
        assert isinstance(await store.begin(retry(f"a{number}"), LEASE_MS), Joined)


# --- giving up


async def test_a_leader_may_give_up_what_nobody_waits_for(store: Store) -> None:
    claim = await lead(store, entry("r1", adoption="same"))
    assert await store.abandon(claim, "same")
    assert await store.abandon(claim, "same")
    assert await phase(store, "r1") is Phase.MISSING
    assert (await lead(store, entry("r2", adoption="same", is_retry=True))).id == "r2"


async def test_a_leader_may_not_give_up_what_somebody_waits_for(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    await store.begin(entry("r2"), LEASE_MS)
    assert not await store.abandon(claim, None)
    await store.depart(Claim(SCOPE, "r1", "r2"), None, Departure.LET_GO)
    assert await store.abandon(claim, None)


async def test_a_leader_that_gives_up_leaves_the_parts(store: Store) -> None:
    await store.fail(await lead(store, entry("r1")), Failure({0: ("a",)}, b"error"))
    assert await store.abandon(await lead(store, entry("r2")), None)
    assert await store.begin(entry("r3"), LEASE_MS) == Led(Claim(SCOPE, "r1", "r3"), {0: ("a",)})


# --- what the store has lost


async def test_a_generation_that_was_lost_is_put_back(store: Store) -> None:
    wanted = entry("r1", adoption="same")
    claim = Claim(SCOPE, "r1", "r1")
    assert await store.progress(claim, 0, ["a"]) is Standing.MISSING
    assert await store.finish(claim, ending()) is Standing.MISSING
    assert await store.fail(claim, Failure({}, b"error")) is Standing.MISSING
    assert await store.restore(claim, wanted, LEASE_MS, {0: ("a",)}) is Standing.KEPT
    assert await store.begin(entry("r2"), LEASE_MS) == Joined("r1", How.JOINED)
    assert await store.begin(retry("r3"), LEASE_MS) == Joined("r1", How.ADOPTED)
    assert await store.finish(claim, ending(b"one")) is Standing.KEPT
    assert await found(store, entry("r4")) == (b"one", How.HIT)


async def test_what_is_put_back_displaces_nothing(store: Store) -> None:
    await lead(store, entry("r1", idempotency=Idempotency("k", "b")))
    wanted = entry("r2", idempotency=Idempotency("k", "b"))
    assert await store.restore(Claim(SCOPE, "r2", "r2"), wanted, LEASE_MS, {}) is Standing.KEPT
    assert await store.begin(entry("r3"), LEASE_MS) == Joined("r1", How.JOINED)
    repeat = entry("r4", idempotency=Idempotency("k", "b"), cache_key=None)
    assert await store.begin(repeat, LEASE_MS) == Joined("r1", How.REPLAYED)


async def test_putting_back_what_is_there_renews_it(store: Store, clock: Clock) -> None:
    claim = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 - 1)
    assert await store.restore(claim, entry("r1"), LEASE_MS, {0: ("a",)}) is Standing.KEPT
    clock.advance(LEASE_MS / 1000 - 1)
    assert await phase(store, "r1") is Phase.RUNNING


# --- the operator


async def test_the_shelf_counts_what_the_cache_holds(store: Store, clock: Clock) -> None:
    for number, size in enumerate((100, 200)):
        claim = await lead(store, entry(f"r{number}", cache_key=f"k{number}"))
        await store.finish(claim, ending(b"x" * size, cache_key=f"k{number}", cache_ms=60_000))
    await found(store, entry("r9", cache_key="k1"))
    shelf = await store.shelf(SCOPE)
    assert (shelf.entries, shelf.bytes, shelf.counts) == (2, 300, {"led": 2, "hit": 1})
    clock.advance(61)
    assert (await store.shelf(SCOPE)).entries == 0


async def test_a_purge_empties_the_cache_of_one_scope(store: Store) -> None:
    other = entry("r8", scope="tenant:other")
    for wanted in (entry("r1"), other):
        await store.finish(await lead(store, wanted), ending())
    assert await store.purge(SCOPE) == 1
    assert (await store.shelf(SCOPE)).entries == 0
    await lead(store, entry("r2"))
    await found(store, replace(other, request="r9"))


async def test_a_purge_leaves_what_an_idempotency_key_has_a_right_to(store: Store) -> None:
    wanted = entry("r1", idempotency=Idempotency("k", "b"))
    await store.finish(await lead(store, wanted), ending(keep_ms=IDEMPOTENCY_MS))
    await store.purge(SCOPE)
    assert await found(store, replace(wanted, request="r2")) == (b"result", How.REPLAYED)


async def test_a_result_that_is_no_use_is_forgotten(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    await store.discard(SCOPE, "r1")
    assert await phase(store, "r1") is Phase.RUNNING
    await store.finish(claim, ending())
    await store.discard(SCOPE, "r1")
    assert (await lead(store, entry("r2"))).id == "r2"
