"""Generations in a Redis Cluster: each scope on one node, wherever its slot goes."""

from __future__ import annotations

import asyncio

from redis.crc import key_slot

from gateway.store.generations import Claim, Ending, Entry, Found, Idempotency, Joined, Led
from gateway.store.redis import RedisStore
from gateway.store.redis.images import RedisImages
from tests.contract.stores import PATIENT
from tests.contract.test_store_flights_images import LARGE, place
from tests.contract.test_store_topologies import Nodes, clustered, nodes

__all__ = ["clustered", "nodes"]

LEASE_MS = 10_000


def entry(request: str, scope: str) -> Entry:
    return Entry(scope=scope, request=request, plan="p", images=1, cache_key="key", adoption="same")


def slot_of(scope: str) -> int:
    return key_slot(f"gateway:{{f:{scope}}}:shelf".encode())


async def test_every_scope_has_one_leader_on_its_own_node(
    clustered: RedisStore, nodes: Nodes
) -> None:
    scopes = [f"tenant:t{number}" for number in range(30)]
    assert {nodes.owner(slot_of(scope)) for scope in scopes} == {0, 1, 2}
    wanted = [entry(f"r{number}", scope) for scope in scopes for number in range(10)]
    begun = await asyncio.gather(*(clustered.begin(one, LEASE_MS) for one in wanted))
    claims = [one.claim for one in begun if isinstance(one, Led)]
    assert sorted(claim.scope for claim in claims) == sorted(scopes)
    assert sum(isinstance(one, Joined) for one in begun) == 270
    for claim in claims:
        await clustered.progress(claim, 0, ["u"])
        await clustered.finish(claim, Ending(b"x", 86_400_000, 600_000, "key", 86_400_000))
        assert isinstance(await clustered.begin(entry("again", claim.scope), LEASE_MS), Found)
        assert (await clustered.shelf(claim.scope)).entries == 1
        assert await clustered.purge(claim.scope) == 1


async def test_a_slot_that_moved_takes_its_generations_along(
    clustered: RedisStore, nodes: Nodes
) -> None:
    scope = "tenant:acme"
    wanted = Entry(scope=scope, request="r1", plan="p", images=1, idempotency=Idempotency("k", "b"))
    assert isinstance(await clustered.begin(wanted, LEASE_MS), Led)
    slot = slot_of(scope)
    nodes.move(slot, (nodes.owner(slot) + 1) % 3)
    claim = Claim(scope, "r1", "r1")
    await clustered.progress(claim, 0, ["u"])
    await clustered.finish(claim, Ending(b"x", 86_400_000, 86_400_000))
    repeat = Entry(scope=scope, request="r2", plan="p", images=1, idempotency=Idempotency("k", "b"))
    assert isinstance(await clustered.begin(repeat, LEASE_MS), Found)


async def test_images_too(nodes: Nodes) -> None:
    images = RedisImages(nodes.url, timeouts=PATIENT)
    for number in range(6):
        at = place(number, scope=f"tenant:t{number}")
        assert await images.put_image(at, LARGE, 60_000, 2 * len(LARGE))
        assert await images.get_image(at) == LARGE
    await images.aclose()
