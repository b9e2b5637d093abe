"""Requests in a Redis Cluster: a tenant on one node, and its cache group perhaps on another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace
from redis.crc import key_slot

from gateway.observability.context import ClientOutcome
from gateway.store.generations import (
    Failure,
    Follow,
    Found,
    Idempotency,
    Lead,
    Leadership,
    Refusal,
)
from gateway.store.images import ImagePlace
from gateway.store.limits import FamilyUse, Limits, Reason, Settlement
from gateway.store.redis import RedisStore
from gateway.store.redis.images import BLOCK_BYTES, RedisImages
from gateway.store.redis.requests import ADMIT, TAKE
from gateway.store.redis.scripts import Script
from gateway.store.requests import End, Leave
from tests.contract.generations import (
    completion,
    end,
    enter,
    entry,
    lead,
    progress,
    request_of,
    unshared,
)
from tests.contract.stores import PATIENT, remaining
from tests.contract.topologies import Nodes, clustered, lasting_nodes, nodes

__all__ = ["clustered", "lasting_nodes", "nodes"]

pytestmark = pytest.mark.slow

GROUP = "group:art"
LIMITS = Limits(
    requests_per_minute=5,
    images_per_minute=10,
    concurrent_requests=2,
    images_per_day=10,
    spend_per_month=1000,
)
LARGE = bytes(range(256)) * (BLOCK_BYTES * 3 // 256) + b"end"


def gone(used: Settlement) -> Leave:
    """The leaving of a client of r1 in the group, which hung up."""
    return Leave(
        settlement=used,
        outcome=ClientOutcome.GONE,
        scope=GROUP,
        generation="r1",
        retry_key="same",
    )


def slot_of(tenant: str) -> int:
    return key_slot(f"gateway:{{t:{tenant}}}:cached".encode())


async def levels(store: RedisStore) -> list[int | None]:
    return remaining(await store.levels("acme", LIMITS))


# --- a tenant's own generations


async def test_every_tenant_has_one_leader_on_its_own_node(
    clustered: RedisStore, nodes: Nodes
) -> None:
    tenants = [f"t{number}" for number in range(30)]
    assert {nodes.owner(slot_of(tenant)) for tenant in tenants} == {0, 1, 2}
    wanted = [
        entry(f"r{number}", scope=f"tenant:{tenant}") for tenant in tenants for number in range(10)
    ]
    places = await asyncio.gather(*(enter(clustered, one) for one in wanted))
    claims = [one.leadership for one in places if isinstance(one, Lead)]
    assert sorted(claim.scope for claim in claims) == sorted(f"tenant:{name}" for name in tenants)
    assert sum(isinstance(one, Follow) for one in places) == 270
    for claim in claims:
        await progress(clustered, claim, 0, ["u"])
        await end(clustered, claim, completion())
        assert isinstance(await enter(clustered, entry("again", scope=claim.scope)), Found)
        assert (await clustered.cache_stats(claim.scope)).entries == 1
        assert await clustered.purge(claim.scope) == 1


async def test_a_slot_that_moved_takes_its_generations_along(
    clustered: RedisStore, nodes: Nodes
) -> None:
    key = Idempotency("k", "b")
    claim = await lead(clustered, entry("r1", cache_key=None, idempotency=key))
    slot = slot_of("acme")
    nodes.move(slot, (nodes.owner(slot) + 1) % 3)
    await progress(clustered, claim, 0, ["u"])
    await end(clustered, claim, completion(cache_key=None, cache_ms=0))
    assert isinstance(await enter(clustered, entry("r2", cache_key=None, idempotency=key)), Found)


# --- a group's, which are in another slot than the tenant


async def test_a_request_in_a_group_goes_its_whole_way(clustered: RedisStore) -> None:
    wanted = request_of(entry("r1", scope=GROUP), limits=LIMITS, images=4, cost=400)
    for _ in range(2):  # the first answer may have been lost
        entered = await clustered.enter(wanted)
        assert entered.place == Lead(Leadership(GROUP, "r1", "r1"), {})
        assert remaining(entered.verdict) == [4, 6, 1, 6, 600]
    claim = Leadership(GROUP, "r1", "r1")
    joined = await clustered.enter(
        request_of(entry("r2", scope=GROUP), limits=LIMITS, images=4, cost=400)
    )
    assert isinstance(joined.place, Follow)
    assert remaining(joined.verdict) == [3, 6, 0, 6, 600]

    used = Settlement("acme", "r1", "m", 3, 300, LIMITS)
    await clustered.progress(claim, 0, ["u"], replace(used, images=1, cost=100))
    assert (await clustered.usage("acme", LIMITS)).today == {"m": FamilyUse(0, 1, 100)}
    told = End(leadership=claim, retry_key=None, outcome=completion(), settlement=used)
    _, verdict = await clustered.end(told)
    assert remaining(verdict) == [3, 7, 0, 7, 700]
    found = await clustered.enter(request_of(entry("r3", scope=GROUP), limits=Limits()))
    assert isinstance(found.place, Found)

    for name in ("r1", "r2", "r3"):
        gone = Leave(
            settlement=replace(used, reservation=name, images=0, cost=0),
            outcome=ClientOutcome.DELIVERED,
            scope=GROUP,
            generation="r1",
        )
        await clustered.leave(gone)
    assert await levels(clustered) == [2, 7, 2, 7, 700]
    assert (await clustered.usage("acme", LIMITS)).today == {"m": FamilyUse(3, 3, 300)}


async def test_a_client_of_a_group_leaves_once(clustered: RedisStore) -> None:
    """However often it is told: the other still waits, so the generation is nobody's to reuse."""
    wanted = entry("r1", scope=GROUP, cache_key=None, retry_key="same")
    claim = await lead(clustered, wanted)
    follower = replace(wanted, request="r2", is_retry=True)
    assert isinstance((await clustered.enter(request_of(follower))).place, Follow)
    used = Settlement("acme", "r2", "m", 0, 0, LIMITS)
    await end(clustered, claim, completion())
    for _ in range(3):
        await clustered.leave(gone(used))
    third = await clustered.enter(request_of(replace(wanted, request="r3")))
    assert isinstance(third.place, Lead), "not unclaimed: one client has yet to leave"


async def test_a_leader_of_a_group_may_leave_as_it_ends(clustered: RedisStore) -> None:
    wanted = entry("r1", scope=GROUP, cache_key=None, retry_key="same")
    entered = await clustered.enter(request_of(wanted, limits=LIMITS))
    assert isinstance(entered.place, Lead)
    used = Settlement("acme", "r1", "m", 1, 100, LIMITS)
    told = End(
        leadership=entered.place.leadership,
        retry_key="same",
        outcome=completion(),
        settlement=used,
        leaves=True,
    )
    for _ in range(2):
        _, verdict = await clustered.end(told)
        assert remaining(verdict) == [4, 9, 2, 9, 900]
    assert isinstance(
        (await clustered.enter(request_of(replace(wanted, request="r2")))).place, Lead
    )
    for _ in range(2):
        await clustered.leave(gone(used))
    third = await clustered.enter(request_of(replace(wanted, request="r3")))
    assert isinstance(third.place, Found)


async def test_who_is_refused_leaves_the_group_as_it_was(clustered: RedisStore) -> None:
    first = request_of(entry("r1", scope=GROUP), limits=Limits(), images=4)
    await clustered.enter(first)
    await end(clustered, Leadership(GROUP, "r1", "r1"), Failure({0: ("u",)}, b"error"))
    before = await levels(clustered)
    small = replace(LIMITS, images_per_day=2)
    refused = await clustered.enter(request_of(entry("r2", scope=GROUP), limits=small, images=4))
    assert (refused.place, refused.verdict.reason) == (None, Reason.IMAGES_PER_DAY)
    assert await levels(clustered) == before
    # Only what the parts lack is asked for.
    let_in = await clustered.enter(
        request_of(entry("r3", scope=GROUP), limits=replace(LIMITS, images_per_day=3), images=4)
    )
    assert let_in.place == Lead(Leadership(GROUP, "r1", "r3"), {0: ("u",)})


async def test_a_conflict_and_a_miss_are_told_without_booking(clustered: RedisStore) -> None:
    keyed = entry("r1", scope=GROUP, idempotency=Idempotency("k", "b"))
    await lead(clustered, keyed)
    before = await levels(clustered)
    for one, answer in (
        (replace(keyed, request="r2", idempotency=Idempotency("k", "x")), Refusal.CONFLICT),
        (entry("r3", scope=GROUP, cache_key="none", only_if_cached=True), Refusal.MISSING),
    ):
        assert (await clustered.enter(request_of(one, limits=LIMITS))).place is answer
    assert await levels(clustered) == before


async def test_a_retry_takes_its_former_place_over(clustered: RedisStore) -> None:
    one = Limits(concurrent_requests=1)
    first = unshared("r1", scope=GROUP)
    await clustered.enter(request_of(first, limits=one))
    other = request_of(entry("r2", scope=GROUP), limits=one)
    assert not (await clustered.enter(other)).verdict.allowed
    again = replace(first, request="r3", is_retry=True)
    entered = await clustered.enter(request_of(again, limits=one))
    assert isinstance(entered.place, Follow)
    assert not (await clustered.enter(replace(other))).verdict.allowed


Meanwhile = Callable[[], Awaitable[object]]


def between(store: RedisStore, script: Script, meanwhile: Meanwhile) -> None:
    """Have something happen just before a script is run for the first time."""
    run: Any = store._run
    is_due = True

    async def run_late(wanted: Script, *args: Any) -> object:
        nonlocal is_due
        if wanted is script and is_due:
            is_due = False
            await meanwhile()
        return await run(wanted, *args)

    store.__dict__["_run"] = run_late


@pytest.mark.parametrize("script", [ADMIT, TAKE], ids=["before admission", "before taking"])
async def test_a_place_that_becomes_cheaper_gives_back_what_it_lacks(
    clustered: RedisStore, script: Script
) -> None:
    """Somebody else began to lead while the limits were asked."""
    between(clustered, script, lambda: enter(clustered, entry("r1", scope=GROUP)))
    entered = await clustered.enter(
        request_of(entry("r2", scope=GROUP), limits=LIMITS, images=4, cost=400)
    )
    assert isinstance(entered.place, Follow)
    assert remaining(entered.verdict)[1:] == [9, 0, 9, 1000]


@pytest.mark.parametrize(("budget", "is_let_in"), [(8, True), (4, False)])
async def test_a_place_that_becomes_dearer_is_asked_for_again(
    clustered: RedisStore, budget: int, is_let_in: bool
) -> None:
    """Whom it was to follow has given up meanwhile; a refusal takes back what was booked."""
    claim = await lead(clustered, entry("r1", scope=GROUP, images=2))

    async def give_up() -> None:
        await end(clustered, claim, Failure(), client=ClientOutcome.ANSWERED)

    between(clustered, TAKE, give_up)
    before = await levels(clustered)
    limits = replace(LIMITS, images_per_day=budget)
    entered = await clustered.enter(
        request_of(entry("r2", scope=GROUP), limits=limits, images=6, cost=600)
    )
    if is_let_in:
        assert isinstance(entered.place, Lead)
        assert remaining(entered.verdict) == [3, 4, 1, 2, 400]
    else:
        assert (entered.place, entered.verdict.reason) == (None, Reason.IMAGES_PER_DAY)
        assert await levels(clustered) == [before[0], 10, 2, 10, 1000]


# --- the images' own server


async def test_images_too(nodes: Nodes) -> None:
    images = RedisImages(nodes.url, timeouts=PATIENT)
    for number in range(6):
        at = ImagePlace(f"tenant:t{number}", "r1", 0)
        assert await images.put_image(at, LARGE, 60_000, 2 * len(LARGE))
        assert await images.get_image(at) == LARGE
    await images.aclose()
