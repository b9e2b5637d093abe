"""Real Sentinel set-ups and three-node Clusters, of each version of the server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.store.redis import RedisStore, Timeouts
from tests.redis_server import (
    CLUSTER_BUS_OFFSET,
    RedisServer,
    available_redis_servers,
    redis_releases,
)

QUICK = Timeouts(connect_s=0.2, command_s=0.2)


SENTINEL = """
sentinel monitor main 127.0.0.1 {port} 1
sentinel down-after-milliseconds main 300
sentinel failover-timeout main 2000
"""


def connect(port: int) -> Any:
    """redis-py's own client; its types do not know most of the cluster's commands."""
    return redis.Redis(port=port)


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
        self._moved: dict[int, int] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{hosts}"

    def owner(self, slot: int) -> int:
        first = next(number for number in range(3) if slot < 16384 * (number + 1) // 3)
        return self._moved.get(slot, first)

    def flush(self) -> None:
        for server in self.servers:
            server.flush()

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
        self._moved[slot] = target

    def _wait_until_agreed(self) -> None:
        deadline = time.monotonic() + 30
        while not all(self._knows_all(client) for client in self.clients):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _knows_all(self, client: Any) -> bool:
        info = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and len(client.execute_command("CLUSTER", "SLOTS")) == 3


@pytest.fixture(scope="module", params=redis_releases())
def lasting_nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(stack, available_redis_servers()[request.param])


@pytest.fixture
def nodes(lasting_nodes: Nodes) -> Nodes:
    """Shared by the tests of a module, as a Cluster takes two seconds to start: empty at each."""
    lasting_nodes.flush()
    return lasting_nodes


@pytest.fixture(params=redis_releases())
def own_nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """For one test alone, to kill."""
    with ExitStack() as stack:
        yield Nodes(stack, available_redis_servers()[request.param])


@pytest.fixture
async def clustered(nodes: Nodes) -> AsyncIterator[RedisStore]:
    store = RedisStore(nodes.url, timeouts=QUICK)
    yield store
    await store.aclose()
