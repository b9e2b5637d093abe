"""The store over a real Sentinel set-up and a real three-node Cluster, of each version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from redis.crc import key_slot

from gateway.store.availability import StoreUnavailable
from gateway.store.limits import Limits
from gateway.store.redis import RedisStore, router
from tests.contract.stores import ask, release, take, used
from tests.contract.topologies import (
    QUICK,
    SENTINEL,
    Nodes,
    Replicated,
    clustered,
    connect,
    lasting_nodes,
    nodes,
    own_nodes,
    replicated,
)
from tests.redis_server import RedisServer, available_redis_servers, redis_releases

__all__ = ["clustered", "lasting_nodes", "nodes", "own_nodes", "replicated"]

pytestmark = pytest.mark.slow

LIMITS = Limits(requests_per_minute=1_000_000)


async def answered(store: RedisStore, number: object, tenant: str = "acme") -> bool:
    try:
        return (await take(store, ask(number, LIMITS, tenant=tenant))).allowed
    except StoreUnavailable:
        return False


async def until_answered(store: RedisStore, within_s: float, tenant: str = "acme") -> float:
    started = time.monotonic()
    while not await answered(store, time.monotonic(), tenant):
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)
    return time.monotonic() - started


# --- Sentinel


async def test_sentinel_leads_to_the_master_and_to_the_next_one(replicated: Replicated) -> None:
    """The master dies; what it had counted is with its replica."""
    limits = Limits(images_per_day=10)
    store = RedisStore(replicated.url, timeouts=QUICK)
    await take(store, ask(1, limits, images=4))
    connect(port=replicated.master.port).wait(1, 5000)
    replicated.master.kill()
    assert not await answered(store, 2)
    await until_answered(store, 20)
    levels = (await store.usage("acme", limits)).levels
    await store.aclose()
    assert levels.day is not None
    assert levels.day.remaining <= 6


@pytest.fixture(params=redis_releases())
def guarded(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server and a Sentinel that each ask for a password of their own."""
    binary = available_redis_servers()[request.param]
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer(binary, ["--requirepass", "of/server"]))
        config = SENTINEL.format(port=master.port) + (
            "sentinel auth-pass main of/server\nrequirepass of+sentinel\n"
        )
        sentinel = stack.enter_context(RedisServer(binary, ["--sentinel"], config=config))
        yield f"redis+sentinel://:of%2Fserver@127.0.0.1:{sentinel.port}/main/0"


async def test_a_sentinel_may_have_a_password_of_its_own(guarded: str) -> None:
    let_in = RedisStore(f"{guarded}?sentinel_password=of%2Bsentinel", timeouts=QUICK)
    kept_out = RedisStore(guarded, timeouts=QUICK)
    assert await answered(let_in, 1)
    assert not await answered(kept_out, 1)
    await let_in.aclose()
    await kept_out.aclose()


# --- Cluster


def slot_of(tenant: str) -> int:
    return key_slot(f"gateway:{{t:{tenant}}}:window".encode())


async def test_a_cluster_counts_each_tenant_on_one_node(
    clustered: RedisStore, nodes: Nodes
) -> None:
    """Many tenants at once, on all nodes, exactly."""
    limits = Limits(requests_per_minute=10)
    tenants = [f"t{number}" for number in range(30)]
    assert {nodes.owner(slot_of(tenant)) for tenant in tenants} == {0, 1, 2}
    verdicts = await asyncio.gather(
        *(
            take(clustered, ask(f"{tenant}-{number}", limits, tenant=tenant))
            for tenant in tenants
            for number in range(20)
        )
    )
    assert sum(verdict.allowed for verdict in verdicts) == 300
    await clustered.ping()


async def test_a_slot_that_moved_is_followed(clustered: RedisStore, nodes: Nodes) -> None:
    """With what was counted in it."""
    limits = Limits(images_per_day=10)
    await take(clustered, ask(1, limits, images=4))
    slot = slot_of("acme")
    nodes.move(slot, (nodes.owner(slot) + 1) % 3)
    verdict = await take(clustered, ask(2, limits, images=1))
    assert verdict.day is not None
    assert verdict.day.remaining == 5


async def test_a_slot_on_its_way_is_waited_for(
    clustered: RedisStore, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither end will run a script over keys of which some are here and some there."""
    monkeypatch.setattr(router, "TRY_AGAIN_S", 0.5)  # five times: the move takes its time here
    await take(clustered, ask(1, LIMITS))
    slot = slot_of("acme")
    target = (nodes.owner(slot) + 1) % 3
    nodes.move(slot, target, keys=False)
    taking = asyncio.ensure_future(answered(clustered, 2))
    await asyncio.sleep(0.03)
    assert not taking.done()
    await asyncio.to_thread(nodes.finish, slot, target)
    assert await taking
    await release(clustered, used(1))
    assert (await clustered.usage("acme", LIMITS)).today["qwen"].images == 1


async def test_a_lost_node_takes_only_its_own_tenants_away(own_nodes: Nodes) -> None:
    store = RedisStore(own_nodes.url, timeouts=QUICK)
    for client in own_nodes.clients:
        client.config_set("cluster-require-full-coverage", "no")
    tenants = {own_nodes.owner(slot_of(f"t{number}")): f"t{number}" for number in range(30)}
    for tenant in tenants.values():
        assert await answered(store, tenant, tenant)
    own_nodes.servers[0].kill()
    assert not await answered(store, "a", tenants[0])
    assert store.failures
    for number in range(20):
        assert await answered(store, f"b{number}", tenants[1])
        assert await answered(store, f"c{number}", tenants[2])
    await store.aclose()


async def test_a_cluster_that_is_away_is_unavailable(own_nodes: Nodes) -> None:
    store = RedisStore(own_nodes.url, timeouts=QUICK)
    for server in own_nodes.servers:
        server.kill()
    assert not await answered(store, 1)
    started = time.monotonic()
    assert not await answered(store, 2)
    assert time.monotonic() - started < QUICK.command_s
    await store.aclose()
