"""Who is given what was paid for already: repeats, retries, and whoever comes after a loss."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.observability.context import ClientOutcome
from gateway.store import Store
from gateway.store.generations import (
    CANDIDATES,
    IDEMPOTENCY_MS,
    Entry,
    Failure,
    FencingResult,
    Follow,
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
    UNCACHED,
    completion,
    end,
    enter,
    entry,
    found,
    lead,
    leave,
    progress,
    retry,
    state,
    unshared,
)

# --- idempotency keys


def keyed(request: str, body: str = "body", **changes: object) -> Entry:
    return entry(request, cache_key=None, idempotency=Idempotency("key", body), **changes)


async def test_a_repeat_joins_and_then_is_given_the_answer_again(
    store: Store, clock: Clock
) -> None:
    claim = await lead(store, keyed("r1"))
    assert await enter(store, keyed("r2")) == Follow("r1", How.REPLAYED)
    await end(store, claim, completion(b"one", cache_key=None, cache_ms=0, keep_ms=IDEMPOTENCY_MS))
    clock.advance(3600)
    assert await found(store, keyed("r3")) == (b"one", How.REPLAYED)


async def test_another_body_is_a_conflict(store: Store) -> None:
    claim = await lead(store, keyed("r1"))
    assert await enter(store, keyed("r2", "other")) is Refusal.CONFLICT
    await end(store, claim, UNCACHED)
    assert await enter(store, keyed("r3", "other")) is Refusal.CONFLICT


async def test_a_key_holds_for_a_day(store: Store, clock: Clock) -> None:
    long = completion(life_ms=7 * DAY_MS, keep_ms=7 * DAY_MS, cache_key=None, cache_ms=0)
    await end(store, await lead(store, keyed("r1")), long)
    clock.advance(86_399)
    await found(store, keyed("r2"))
    clock.advance(2)
    assert (await lead(store, keyed("r3", "other"))).id == "r3"


async def test_a_failed_request_may_be_repeated_under_its_key(store: Store) -> None:
    await end(store, await lead(store, keyed("r1")), Failure({0: ("a",)}, b"error"))
    assert await enter(store, keyed("r2")) == Lead(Leadership(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_key_binds_to_what_the_cache_gave(store: Store, clock: Clock) -> None:
    """A repeat is given the same pictures, though the cache has moved on."""
    await end(
        store,
        await lead(store, entry("r1")),
        completion(b"one", cache_ms=60_000, keep_ms=IDEMPOTENCY_MS),
    )
    wanted = entry("r2", idempotency=Idempotency("key", "body"))
    assert await found(store, wanted) == (b"one", How.HIT)
    await end(store, await lead(store, entry("r3", fresh=True)), completion(b"two"))
    clock.advance(120)
    assert await found(store, replace(wanted, request="r4")) == (b"one", How.REPLAYED)


async def test_no_cache_does_not_undo_a_key(store: Store) -> None:
    await end(store, await lead(store, keyed("r1")), UNCACHED)
    assert await found(store, keyed("r2", fresh=True)) == (b"result", How.REPLAYED)


async def test_a_key_holds_no_longer_than_what_it_points_to(store: Store) -> None:
    await end(store, await lead(store, keyed("r1")), UNCACHED)
    await found(store, keyed("r2"))
    await store.discard(SCOPE, "r1")
    assert (await lead(store, keyed("r3", "other"))).id == "r3"


async def test_a_key_is_the_only_way_to_its_generation(store: Store) -> None:
    """Two requests with different keys are two requests, whatever their bodies."""
    await lead(store, keyed("r1", retry_key="same"))
    await lead(store, retry("r2"))
    other = retry("r3", idempotency=Idempotency("other", "body"))
    await lead(store, other)


# --- adoption


async def test_a_retry_adopts_what_is_running(store: Store) -> None:
    await lead(store, unshared("r1"))
    assert await enter(store, retry("r2")) == Follow("r1", How.ADOPTED)


async def test_a_retry_adopts_what_nobody_was_given(store: Store, clock: Clock) -> None:
    await end(store, await lead(store, unshared("r1")), UNCACHED)
    clock.advance(590)
    assert await found(store, retry("r2")) == (b"result", How.ADOPTED)
    clock.advance(20)
    assert (await lead(store, retry("r3"))).id == "r3"


async def test_a_retry_adopts_an_answer_that_was_lost_on_its_way(
    store: Store, clock: Clock
) -> None:
    claim = await lead(store, unshared("r1"))
    await end(store, claim, UNCACHED)
    await leave(store, claim, ClientOutcome.DELIVERED)
    clock.advance(55)
    assert await found(store, retry("r2")) == (b"result", How.ADOPTED)
    clock.advance(10)
    assert (await lead(store, retry("r3"))).id == "r3"


async def test_who_is_no_retry_adopts_nothing_that_somebody_waits_for(store: Store) -> None:
    """An unseeded request expects a new picture."""
    claim = await lead(store, unshared("r1"))
    assert (await lead(store, unshared("r2"))).id == "r2"
    await end(store, claim, UNCACHED)
    assert (await lead(store, unshared("r3"))).id == "r3"


async def test_what_its_client_let_go_belongs_to_the_next_identical_request(store: Store) -> None:
    """A client that hangs up and asks again need not be an SDK."""
    claim = await lead(store, unshared("r1"))
    await store.client_gone(claim, "same")
    assert await enter(store, unshared("r2")) == Follow("r1", How.ADOPTED)
    assert (await lead(store, unshared("r3"))).id == "r3"


@pytest.mark.parametrize("changes", [{"may_reuse_unclaimed": False}, {"fresh": True}], ids=str)
async def test_unless_it_wants_something_new(store: Store, changes: dict[str, bool]) -> None:
    claim = await lead(store, unshared("r1"))
    await store.client_gone(claim, "same")
    assert (await lead(store, unshared("r2", **changes))).id == "r2"
    assert isinstance(await enter(store, retry("r3", **changes)), Follow)


async def test_retries_share_out_what_their_clients_let_go(store: Store) -> None:
    claims = [await lead(store, unshared(f"r{number}")) for number in range(4)]
    for claim in claims[1:3]:
        await store.client_gone(claim, "same")
    adopted = [await enter(store, retry(f"a{number}")) for number in range(2)]
    assert {one.id for one in adopted if isinstance(one, Follow)} == {"r1", "r2"}


async def test_retries_share_out_what_is_running(store: Store, clock: Clock) -> None:
    for number in range(3):
        await lead(store, unshared(f"r{number}"))
        clock.advance(1)
    adopted = [await enter(store, retry(f"a{number}")) for number in range(4)]
    ids = [one.id for one in adopted if isinstance(one, Follow)]
    assert ids == ["r2", "r1", "r0", "r2"]


async def test_a_retry_that_hangs_up_leaves_it_to_the_next(store: Store) -> None:
    claim = await lead(store, unshared("r1"))
    await store.client_gone(claim, "same")
    await enter(store, retry("r2"))
    await lead(store, unshared("r3"))
    await leave(store, Leadership(SCOPE, "r1", "r2"))
    assert await enter(store, retry("r4")) == Follow("r1", How.ADOPTED)


async def test_what_a_retry_has_let_go_may_be_adopted_by_another(
    store: Store, clock: Clock
) -> None:
    for request in ("r1", "r2"):
        await lead(store, unshared(request))
        clock.advance(1)
    assert await enter(store, retry("a1")) == Follow("r2", How.ADOPTED)
    await leave(store, Leadership(SCOPE, "r2", "a1"))
    assert await enter(store, retry("a2")) == Follow("r2", How.ADOPTED)
    assert await enter(store, retry("a3")) == Follow("r1", How.ADOPTED)


async def test_a_retry_that_asks_again_is_given_the_same_parts(store: Store) -> None:
    """Its first answer was lost on the way."""
    failed = await lead(store, unshared("r1"))
    await end(store, failed, Failure({0: ("a",)}, b"error"), retry_key="same")
    for _ in range(3):
        assert await enter(store, retry("r3")) == Lead(Leadership(SCOPE, "r1", "r3"), {0: ("a",)})


async def test_who_adopts_an_orphan_and_asks_again_is_given_the_same_parts(store: Store) -> None:
    failed = await lead(store, unshared("r1"))
    await end(store, failed, Failure({0: ("a",)}), retry_key="same")
    for _ in range(3):
        assert await enter(store, unshared("r3", may_reuse_unclaimed=True)) == Lead(
            Leadership(SCOPE, "r1", "r3"), {0: ("a",)}
        )


async def test_a_retry_takes_over_from_a_dead_leader(store: Store, clock: Clock) -> None:
    await progress(store, await lead(store, unshared("r1")), 0, ["a"])
    clock.advance(LEASE_MS / 1000 + 1)
    assert await enter(store, retry("r2")) == Lead(Leadership(SCOPE, "r1", "r2"), {0: ("a",)})


async def test_a_result_in_the_cache_goes_before_a_take_over(store: Store, clock: Clock) -> None:
    """What costs nothing goes first."""
    await lead(store, unshared("r1"))
    clock.advance(LEASE_MS / 1000 + 1)
    await end(store, await lead(store, entry("r2")), completion())
    assert await found(store, retry("r3", cache_key="key")) == (b"result", How.HIT)


async def test_of_very_many_identical_requests_a_retry_still_finds_one(store: Store) -> None:
    for number in range(CANDIDATES * 5):
        await lead(store, unshared(f"r{number}"))
    for number in range(CANDIDATES * 2):
        assert isinstance(await enter(store, retry(f"a{number}")), Follow)


# --- giving up


async def test_a_leader_may_give_up_what_nobody_waits_for(store: Store) -> None:
    """Nothing was paid for: no trace is left."""
    claim = await lead(store, entry("r1", retry_key="same"))
    for _ in range(2):
        assert await end(store, claim, Failure(), retry_key="same") is FencingResult.KEPT
    assert await state(store, "r1") is State.MISSING
    assert (await lead(store, entry("r2", retry_key="same", is_retry=True))).id == "r2"


async def test_a_leader_hands_over_what_somebody_waits_for(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    await enter(store, entry("r2"))
    await enter(store, entry("r3"))
    await leave(store, Leadership(SCOPE, "r1", "r2"))
    await end(store, claim, Failure())
    assert await state(store, "r1") is State.DEAD
    assert await lead(store, entry("r3"), "r1") == Leadership(SCOPE, "r1", "r3")
    await end(store, Leadership(SCOPE, "r1", "r3"), Failure())
    assert await state(store, "r1") is State.MISSING


async def test_a_leader_that_gives_up_leaves_the_parts(store: Store) -> None:
    await end(store, await lead(store, entry("r1")), Failure({0: ("a",)}, b"error"))
    await end(store, await lead(store, entry("r2")), Failure())
    assert await enter(store, entry("r3")) == Lead(Leadership(SCOPE, "r1", "r3"), {0: ("a",)})


# --- what the store has lost


async def test_a_generation_that_was_lost_is_put_back(store: Store) -> None:
    wanted = entry("r1", retry_key="same")
    claim = Leadership(SCOPE, "r1", "r1")
    assert await progress(store, claim, 0, ["a"]) is FencingResult.MISSING
    assert await end(store, claim, completion()) is FencingResult.MISSING
    assert await end(store, claim, Failure({}, b"error")) is FencingResult.MISSING
    assert await store.restore(claim, wanted, LEASE_MS, {0: ("a",)}) is FencingResult.KEPT
    assert await enter(store, entry("r2")) == Follow("r1", How.JOINED)
    assert await enter(store, retry("r3")) == Follow("r1", How.ADOPTED)
    assert await end(store, claim, completion(b"one")) is FencingResult.KEPT
    assert await found(store, entry("r4")) == (b"one", How.HIT)


async def test_what_is_put_back_displaces_nothing(store: Store) -> None:
    await lead(store, entry("r1", idempotency=Idempotency("k", "b")))
    wanted = entry("r2", idempotency=Idempotency("k", "b"))
    assert (
        await store.restore(Leadership(SCOPE, "r2", "r2"), wanted, LEASE_MS, {})
        is FencingResult.KEPT
    )
    assert await enter(store, entry("r3")) == Follow("r1", How.JOINED)
    repeat = entry("r4", idempotency=Idempotency("k", "b"), cache_key=None)
    assert await enter(store, repeat) == Follow("r1", How.REPLAYED)


async def test_putting_back_what_is_there_renews_it(store: Store, clock: Clock) -> None:
    claim = await lead(store, entry("r1"))
    clock.advance(LEASE_MS / 1000 - 1)
    assert await store.restore(claim, entry("r1"), LEASE_MS, {0: ("a",)}) is FencingResult.KEPT
    clock.advance(LEASE_MS / 1000 - 1)
    assert await state(store, "r1") is State.RUNNING


# --- the operator


async def test_the_stats_count_what_the_cache_holds(store: Store, clock: Clock) -> None:
    for number, size in enumerate((100, 200)):
        claim = await lead(store, entry(f"r{number}", cache_key=f"k{number}"))
        await end(store, claim, completion(b"x" * size, cache_key=f"k{number}", cache_ms=60_000))
    await found(store, entry("r9", cache_key="k1"))
    stats = await store.cache_stats(SCOPE)
    assert (stats.entries, stats.bytes, stats.counts) == (2, 300, {"led": 2, "hit": 1})
    clock.advance(61)
    assert (await store.cache_stats(SCOPE)).entries == 0


async def test_a_purge_empties_the_cache_of_one_scope(store: Store) -> None:
    other = entry("r8", scope="tenant:other")
    for wanted in (entry("r1"), other):
        await end(store, await lead(store, wanted), completion())
    assert await store.purge(SCOPE) == 1
    assert (await store.cache_stats(SCOPE)).entries == 0
    await lead(store, entry("r2"))
    await found(store, replace(other, request="r9"))


async def test_a_purge_leaves_what_an_idempotency_key_has_a_right_to(store: Store) -> None:
    wanted = entry("r1", idempotency=Idempotency("k", "b"))
    await end(store, await lead(store, wanted), completion(keep_ms=IDEMPOTENCY_MS))
    await store.purge(SCOPE)
    assert await found(store, replace(wanted, request="r2")) == (b"result", How.REPLAYED)


async def test_a_purge_takes_the_held_bytes_away(store: Store, clock: Clock) -> None:
    wanted = entry("r1", idempotency=Idempotency("k", "b"))
    kept = completion(life_ms=90_000, keep_ms=IDEMPOTENCY_MS)
    await end(store, await lead(store, wanted), kept)
    await store.pin_images(SCOPE, "r1", DAY_MS)
    await store.purge(SCOPE)
    clock.advance(600)
    await lead(store, replace(wanted, request="r2"))


async def test_a_result_that_is_no_use_is_forgotten(store: Store) -> None:
    claim = await lead(store, entry("r1"))
    await store.discard(SCOPE, "r1")
    assert await state(store, "r1") is State.RUNNING
    await end(store, claim, completion())
    await store.discard(SCOPE, "r1")
    assert (await lead(store, entry("r2"))).id == "r2"
