"""The store over a real Sentinel set-up and a real three-node Cluster, of each version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from gateway.store.base import Limits, StoreUnavailable
from gateway.store.redis import RedisStore, Timeouts
from tests.contract.stores import ask, used
from tests.redis_server import (
    CLUSTER_BUS_OFFSET,
    RedisServer,
    available_redis_servers,
    redis_releases,
)

LIMITS = Limits(requests_per_minute=1_000_000)
QUICK = Timeouts(connect_s=0.2, command_s=0.2)


def connect(port: int) -> Any:
    """redis-py's own client; its types do not know most of the cluster's commands."""
    return redis.Redis(port=port)


async def answered(store: RedisStore, number: object, tenant: str = "acme") -> bool:
    try:
        return (await store.take(ask(number, LIMITS, tenant=tenant))).allowed
    except StoreUnavailable:
        return False


async def until_answered(store: RedisStore, within_s: float, tenant: str = "acme") -> float:
    started = time.monotonic()
    while not await answered(store, time.monotonic(), tenant):
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)
    return time.monotonic() - started


# --- Sentinel


SENTINEL = """
sentinel monitor main 127.0.0.1 {port} 1
sentinel down-after-milliseconds main 300
sentinel failover-timeout main 2000
"""


class Replicated:
    """A master, a replica and a sentinel."""

    def __init__(self, stack: ExitStack, binary: Path | None = None) -> None:
        self.master = stack.enter_context(RedisServer(binary))
        leader = ["127.0.0.1", str(self.master.port)]
        follow = ["--replicaof", *leader, "--repl-diskless-sync-delay", "0"]
        self.replica = stack.enter_context(RedisServer(binary, follow))
        config = SENTINEL.format(port=self.master.port)
        self.sentinel = stack.enter_context(RedisServer(binary, ["--sentinel"], config=config))

    @property
    def url(self) -> str:
        # A sentinel that is not there must not be in the way.
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/main/0"

    def wait_until_complete(self) -> None:
        client = connect(port=self.sentinel.port)
        deadline = time.monotonic() + 30
        while True:
            state = client.sentinel_master("main")
            link = connect(port=self.replica.port).info("replication")["master_link_status"]
            if state["num-slaves"] >= 1 and link == "up":
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(params=redis_releases())
def replicated(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    with ExitStack() as stack:
        servers = Replicated(stack, available_redis_servers()[request.param])
        servers.wait_until_complete()
        yield servers


async def test_sentinel_leads_to_the_master_and_to_the_next_one(replicated: Replicated) -> None:
    """The master dies; what it had counted is with its replica."""
    limits = Limits(images_per_day=10)
    store = RedisStore(replicated.url, timeouts=QUICK)
    await store.take(ask(1, limits, images=4))
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


class Nodes:
    """Three masters with a third of the slots each."""

    def __init__(self, stack: ExitStack, binary: Path | None = None) -> None:
        args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        self.servers = [stack.enter_context(RedisServer(binary, args)) for _ in range(3)]
        self.clients = [connect(port=server.port) for server in self.servers]
        for number, client in enumerate(self.clients):
            slots = range(16384 * number // 3, 16384 * (number + 1) // 3)
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for client in self.clients[1:]:
            first = self.servers[0].port
            client.execute_command(
                "CLUSTER", "MEET", "127.0.0.1", first, first + CLUSTER_BUS_OFFSET
            )
        self._wait_until_agreed()
        self.ids = [client.execute_command("CLUSTER", "MYID") for client in self.clients]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{hosts}"

    def owner(self, slot: int) -> int:
        return next(number for number in range(3) if slot < 16384 * (number + 1) // 3)

    def move(self, slot: int, target: int, *, keys: bool = True) -> None:
        source = self.owner(slot)
        giver, taker = self.clients[source], self.clients[target]
        taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
        giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])
        if keys:
            self.finish(slot, target)

    def finish(self, slot: int, target: int) -> None:
        giver, port = self.clients[self.owner(slot)], self.servers[target].port
        while held := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            giver.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *held)
        for client in (self.clients[target], *self.clients):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])

    def _wait_until_agreed(self) -> None:
        deadline = time.monotonic() + 30
        while not all(self._knows_all(client) for client in self.clients):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _knows_all(self, client: Any) -> bool:
        info = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and len(client.execute_command("CLUSTER", "SLOTS")) == 3


@pytest.fixture(params=redis_releases())
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(stack, available_redis_servers()[request.param])


@pytest.fixture
async def clustered(nodes: Nodes) -> AsyncIterator[RedisStore]:
    store = RedisStore(nodes.url, timeouts=QUICK)
    yield store
    await store.aclose()


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
            clustered.take(ask(f"{tenant}-{number}", limits, tenant=tenant))
            for tenant in tenants
            for number in range(20)
        )
    )
    assert sum(verdict.allowed for verdict in verdicts) == 300
    await clustered.ping()


async def test_a_slot_that_moved_is_followed(clustered: RedisStore, nodes: Nodes) -> None:
    """With what was counted in it."""
    limits = Limits(images_per_day=10)
    await clustered.take(ask(1, limits, images=4))
    slot = slot_of("acme")
    nodes.move(slot, (nodes.owner(slot) + 1) % 3)
    verdict = await clustered.take(ask(2, limits, images=1))
    assert verdict.day is not None
    assert verdict.day.remaining == 5


async def test_a_slot_on_its_way_is_waited_for(clustered: RedisStore, nodes: Nodes) -> None:
    """Neither end will run a script over keys of which some are here and some there."""
    await clustered.take(ask(1, LIMITS))
    slot = slot_of("acme")
    target = (nodes.owner(slot) + 1) % 3
    nodes.move(slot, target, keys=False)
    taking = asyncio.ensure_future(answered(clustered, 2))
    await asyncio.sleep(0.03)
    assert not taking.done()
    await asyncio.to_thread(nodes.finish, slot, target)
    assert await taking
    await clustered.release(used(1))
    assert (await clustered.usage("acme", LIMITS)).today["qwen-image"].images == 1


async def test_a_lost_node_takes_only_its_own_tenants_away(
    clustered: RedisStore, nodes: Nodes
) -> None:
    for client in nodes.clients:
        client.config_set("cluster-require-full-coverage", "no")
    tenants = {nodes.owner(slot_of(f"t{number}")): f"t{number}" for number in range(30)}
    for tenant in tenants.values():
        assert await answered(clustered, tenant, tenant)
    nodes.servers[0].kill()
    assert not await answered(clustered, "a", tenants[0])
    assert clustered.failures
    for number in range(20):
        assert await answered(clustered, f"b{number}", tenants[1])
        assert await answered(clustered, f"c{number}", tenants[2])
    nodes.servers[0].restart()


async def test_a_cluster_that_is_away_is_unavailable(nodes: Nodes) -> None:
    store = RedisStore(nodes.url, timeouts=QUICK)
    for server in nodes.servers:
        server.kill()
    assert not await answered(store, 1)
    started = time.monotonic()
    assert not await answered(store, 2)
    assert time.monotonic() - started < 0.05
    await store.aclose()
