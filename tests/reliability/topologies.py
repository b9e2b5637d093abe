"""Redis as it runs in production: behind Sentinels, and as a Cluster. Real servers, all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import redis
from redis.crc import key_slot

from tests.redis_server import CLUSTER_BUS_OFFSET, RedisServer

SENTINEL = """
sentinel monitor main 127.0.0.1 {port} 2
sentinel down-after-milliseconds main 500
sentinel failover-timeout main 3000
"""
SLOTS = 16384


def connect(server: RedisServer) -> Any:
    """redis-py's own client; its types do not know most of these commands."""
    return redis.Redis(port=server.port)


def wait_until(condition: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the servers did not agree in time"
        time.sleep(0.05)


class NodeRouter:
    """Several, closed together."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self, *args: str, config: str = "") -> RedisServer:
        return self._stack.enter_context(RedisServer(args=args, config=config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Replicated(NodeRouter):
    """A master, a replica, and three Sentinels of which two must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.master = self.start()
        follow = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replica = self.start(*follow, "--repl-diskless-sync-delay", "0")
        # A Sentinel that starts before the replica is there learns of it ten seconds later.
        wait_until(lambda: connect(self.master).info("replication")["connected_slaves"] == 1)
        wait_until(self._is_following)
        config = SENTINEL.format(port=self.master.port)
        self.sentinels = [self.start("--sentinel", config=config) for _ in range(3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/main/0"

    def wait_until_met(self) -> None:
        """Until the Sentinels know each other, which takes them some seconds."""
        wait_until(self._have_met)

    def wait_until_failed_over(self) -> None:
        """Until the replica is what the Sentinels name, and takes writes."""
        wait_until(lambda: connect(self.replica).info("replication")["role"] == "master")

    def _is_following(self) -> bool:
        found: dict[str, object] = connect(self.replica).info("replication")
        return found["master_link_status"] == "up"

    def _have_met(self) -> bool:
        states = [connect(sentinel).sentinel_master("main") for sentinel in self.sentinels]
        return all(
            state["num-slaves"] == 1 and state["num-other-sentinels"] == 2 for state in states
        )


class Cluster(NodeRouter):
    """Three masters with a third of the slots each."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [self.start("--cluster-enabled", "yes") for _ in range(3)]
        self._clients = [connect(node) for node in self.nodes]
        self._ids = [client.execute_command("CLUSTER", "MYID") for client in self._clients]
        for number, client in enumerate(self._clients):
            slots = range(SLOTS * number // 3, SLOTS * (number + 1) // 3)
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first = self.nodes[0].port
        for client in self._clients[1:]:
            client.execute_command(
                "CLUSTER", "MEET", "127.0.0.1", first, first + CLUSTER_BUS_OFFSET
            )
        wait_until(self._have_agreed)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def move(self, key: str) -> None:
        """Give the slot of a key to the next node, keys and all, as a resharding tool does."""
        slot = key_slot(key.encode())
        source = next(i for i in range(3) if self._serves(i, slot))
        target = (source + 1) % 3
        giver, taker = self._clients[source], self._clients[target]
        taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source])
        giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[target])
        port = self.nodes[target].port
        while held := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            giver.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *held)
        for client in (taker, *self._clients):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._ids[target])

    def _serves(self, number: int, slot: int) -> bool:
        port = self.nodes[number].port
        ranges = self._clients[number].execute_command("CLUSTER", "SLOTS")
        return any(first <= slot <= last and at[1] == port for first, last, at, *_ in ranges)

    def _have_agreed(self) -> bool:
        return all(
            b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
            and len(client.execute_command("CLUSTER", "SLOTS")) == 3
            for client in self._clients
        )
