"""What is set up wrong is named before it costs anything: a script of each kind is run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from gateway.store.availability import StoreUnavailable
from gateway.store.redis import RedisStore
from gateway.store.redis.scripts import explained
from tests.contract.stores import KINDS, PATIENT, Clock, clock, open_store, server_of
from tests.contract.topologies import Nodes, clustered, lasting_nodes, nodes
from tests.redis_server import RedisServer

__all__ = ["clock", "clustered", "lasting_nodes", "nodes"]

pytestmark = pytest.mark.slow

LITERAL = (
    b"-ERR bad lua script for redis cluster, all the keys that the script uses should be passed "
    b"using the KEYS array, and KEYS should not be in expression\r\n"
)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_that_is_well_is_left_as_it_was(kind: str, clock: Clock) -> None:
    store = open_store(kind, clock)
    await store.probe()
    await store.aclose()
    if kind != "memory":
        client: Any = redis.Redis.from_url(server_of(kind).url)
        assert client.keys("*") == []


async def test_a_cluster_is_probed_in_each_kind_of_slot(clustered: RedisStore) -> None:
    await clustered.probe()


async def test_a_cluster_that_is_taken_for_one_server_is_named(nodes: Nodes) -> None:
    for server in nodes.servers:
        store = RedisStore(server.url, timeouts=PATIENT)
        with pytest.raises(StoreUnavailable, match=r"this is a cluster: use redis\+cluster://"):
            await store.probe()
        await store.aclose()


async def test_a_user_that_may_run_no_scripts_is_named() -> None:
    config = "user gateway on >secret ~* &* +@all -@scripting"
    with RedisServer(config=config) as server:
        url = server.url.replace("redis://", "redis://gateway:secret@")
        store = RedisStore(url, timeouts=PATIENT)
        await store.ping()
        with pytest.raises(StoreUnavailable, match=r"needs \+@scripting"):
            await store.probe()
        await store.aclose()


@asynccontextmanager
async def proxy(refusal: bytes) -> AsyncIterator[int]:
    """It answers pings, and refuses every script."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while asked := await reader.read(65536):
            if b"EVAL" in asked:
                writer.write(refusal)
            elif b"PING" in asked:
                writer.write(b"+PONG\r\n")
            else:
                writer.write(b"+OK\r\n" * max(1, asked.count(b"CLIENT")))
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_proxy_that_wants_literal_keys_is_named() -> None:
    async with proxy(LITERAL) as port:
        store = RedisStore(f"redis://127.0.0.1:{port}", timeouts=PATIENT)
        await store.ping()
        with pytest.raises(StoreUnavailable, match="set script_check_enable to 0"):
            await store.probe()
        await store.aclose()


def test_what_is_not_known_is_said_as_it_is() -> None:
    assert explained(ResponseError("odd")) == "odd"
