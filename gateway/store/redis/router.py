"""From an address to the server that a key lives on."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio.client import Redis
from redis.asyncio.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from gateway.config.redis_url import RedisUrl, parse
from gateway.store.availability import StoreUnavailable
from gateway.store.redis.dns import DnsProbe
from gateway.store.redis.pipeliner import Command, Pipeliner, Reply, Timeouts

MOVES_MAX = 5
"""How often one command follows moving slots."""
TRY_AGAIN_S = 0.02
LOOK_EVERY_S = 0.25
"""Least time between two reads of the slot map, so that an outage costs little."""

Node = tuple[str, int]


class NodeRouter(Protocol):
    async def call(self, key: str, command: Command) -> Reply:
        """The reply, an error of Redis included. Raises StoreUnavailable."""

    async def reconnect(self, key: str) -> None:
        """The server on which `key` was is no longer its master."""

    @property
    def is_cluster(self) -> bool:
        """Whether keys of different hash tags may live on different servers."""

    @property
    def failures(self) -> list[str]:
        """What is known to be away."""

    @property
    def reconnects(self) -> int:
        """How often a connection was made again, or a key found on another server."""

    async def ping(self) -> None:
        """Raises StoreUnavailable."""

    async def aclose(self) -> None: ...


def connect(url: str, timeouts: Timeouts) -> NodeRouter:
    """Sends nothing yet. Raises ValueError for an unknown address."""
    address = parse(url)
    options: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "retry": Retry(NoBackoff(), 0),  # a pipeliner tries again by itself, and knows when not to
        "protocol": 2,
        "socket_timeout": None,  # a pipeliner watches the silence
        "socket_connect_timeout": timeouts.connect_s,
        **address.tls_options,
    }
    if address.is_cluster:
        if address.tls:
            options["connection_class"] = SSLConnection
        return Cluster(address.hosts, options, timeouts)
    if address.service is not None:
        return _sentinel(address, address.service, options, timeouts)
    where: dict[str, Any]
    if address.socket is not None:
        where = {"connection_class": UnixDomainSocketConnection, "path": address.socket}
    else:
        host, port = address.hosts[0]
        connection = SSLConnection if address.tls else Connection
        where = {"connection_class": connection, "host": host, "port": port}
    pool = ConnectionPool(db=address.db, **where, **options)
    names = DnsProbe(host for host, _ in address.hosts)
    return SingleNode(Pipeliner(pool, timeouts, "Redis", names))


def _sentinel(
    address: RedisUrl, service: str, options: dict[str, Any], timeouts: Timeouts
) -> SingleNode:
    asked = {
        **options,
        "username": address.sentinel_username,
        "password": address.sentinel_password,
        "socket_timeout": timeouts.command_s,
        "ssl": address.tls,
    }
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        address.hosts, sentinel_kwargs=asked, **options, ssl=address.tls
    )
    pool = sentinel.master_for(service, db=address.db).connection_pool
    # One dead Sentinel after the other may have to be asked for the master.
    patient = Timeouts(timeouts.connect_s * (len(address.hosts) + 1), timeouts.command_s)
    names = DnsProbe(host for host, _ in address.hosts)
    return SingleNode(Pipeliner(pool, patient, f"Redis {service}", names), sentinel.sentinels)


class SingleNode:
    """One server, or the present master behind Sentinels."""

    is_cluster = False

    def __init__(self, pipeliner: Pipeliner, sentinels: Sequence[Redis] = ()) -> None:
        self._pipeliner = pipeliner
        self._sentinels = sentinels

    async def call(self, key: str, command: Command) -> Reply:  # noqa: ARG002 - every key is here
        return await self._pipeliner.call(command)

    async def reconnect(self, key: str) -> None:  # noqa: ARG002
        await self._pipeliner.reconnect()

    @property
    def failures(self) -> list[str]:
        return [self._pipeliner.failure] if self._pipeliner.failure else []

    @property
    def reconnects(self) -> int:
        return self._pipeliner.reconnects

    async def ping(self) -> None:
        _expect_no_error(await self._pipeliner.call(("PING",)))

    async def aclose(self) -> None:
        await self._pipeliner.aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()


class Cluster:
    """A pipeliner per master. redis-py's waits 0.25 s on a failure, and for silent nodes."""

    is_cluster = True

    def __init__(
        self, seeds: tuple[Node, ...], options: dict[str, Any], timeouts: Timeouts
    ) -> None:
        self._seeds = seeds
        self._options = options
        self._timeouts = timeouts
        self._pipeliners: dict[Node, Pipeliner] = {}
        self._ranges: list[tuple[int, int, Node]] = []
        self._moved: dict[int, Node] = {}
        """Slots that have moved since the map was read."""
        self._changes = 0
        """How often the map named other masters than before."""
        self._is_stale = True
        self._look_again_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def call(self, key: str, command: Command) -> Reply:
        slot = key_slot(key.encode())
        if self._is_stale:
            await self._look()
        node = self._moved.get(slot) or self._mapped(slot)
        reply: Reply = None
        for _ in range(MOVES_MAX):
            try:
                reply = await self._pipeliner(node).call(command)
            except StoreUnavailable:
                self._is_stale = True  # a replica may have taken over
                raise
            if isinstance(reply, AskError):
                pipeliner = self._pipeliner((reply.host, reply.port))
                _, reply = await asyncio.gather(
                    pipeliner.call(("ASKING",)), pipeliner.call(command)
                )
            if isinstance(reply, MovedError):
                self._is_stale = True
                node = self._moved[slot] = (reply.host, reply.port)
            elif isinstance(reply, TryAgainError):
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                break
        return reply

    async def reconnect(self, key: str) -> None:
        self._moved.pop(key_slot(key.encode()), None)
        self._is_stale = True

    @property
    def failures(self) -> list[str]:
        serving = {node for _, _, node in self._ranges}
        pipeliners = ((node, pipeliner.failure) for node, pipeliner in self._pipeliners.items())
        return [failure for node, failure in pipeliners if failure and node in serving]

    @property
    def reconnects(self) -> int:
        return self._changes + sum(pipeliner.reconnects for pipeliner in self._pipeliners.values())

    async def ping(self) -> None:
        await self._look()
        for node in {node for _, _, node in self._ranges}:
            _expect_no_error(await self._pipeliner(node).call(("PING",)))

    async def aclose(self) -> None:
        if self._looking:
            self._looking.cancel()
        await asyncio.gather(*(pipeliner.aclose() for pipeliner in self._pipeliners.values()))

    def _mapped(self, slot: int) -> Node:
        after = bisect_right(self._ranges, slot, key=lambda entry: entry[0])
        if after and slot <= self._ranges[after - 1][1]:
            return self._ranges[after - 1][2]
        raise StoreUnavailable("no Redis node serves this key")

    def _pipeliner(self, node: Node) -> Pipeliner:
        if node not in self._pipeliners:
            host, port = node
            pool = ConnectionPool(host=host, port=port, **self._options)
            self._pipeliners[node] = Pipeliner(
                pool, self._timeouts, f"Redis {host}:{port}", DnsProbe([host])
            )
        return self._pipeliners[node]

    async def _look(self) -> None:
        """Read the slot map; all who need it share one read."""
        if self._looking is None or self._looking.done():
            now = asyncio.get_running_loop().time()
            if now < self._look_again_at:
                return
            self._look_again_at = now + LOOK_EVERY_S
            self._looking = asyncio.create_task(self._ask_for_slots())
        await asyncio.shield(self._looking)

    async def _ask_for_slots(self) -> None:
        for node in [*self._pipeliners, *self._seeds]:
            with contextlib.suppress(StoreUnavailable):
                reply = await self._pipeliner(node).call(("CLUSTER", "SLOTS"))
                if not isinstance(reply, ResponseError):
                    ranges = _ranges(reply, node[0])
                    self._changes += bool(self._ranges) and ranges != self._ranges
                    self._ranges = ranges
                    self._moved.clear()
                    self._is_stale = False
                    return


def _ranges(reply: Sequence[Reply], asked: str) -> list[tuple[int, int, Node]]:
    """First and last slot with their master; one without a host is the one that was asked."""
    try:
        return sorted(
            (first, last, ((master[0] or b"").decode() or asked, master[1]))
            for first, last, master, *_ in reply
        )
    except (TypeError, ValueError, AttributeError, IndexError):
        raise StoreUnavailable("a Redis node told no map of the slots") from None


def _expect_no_error(reply: Reply) -> None:
    if isinstance(reply, ResponseError):
        raise StoreUnavailable(f"Redis: {reply}")
