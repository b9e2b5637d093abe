"""From URLs to servers; nothing is connected."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from gateway.store.redis.pipeliner import Timeouts
from gateway.store.redis.router import Cluster, SingleNode, connect

TIMEOUTS = Timeouts()


def single(url: str) -> SingleNode:
    servers = connect(url, TIMEOUTS)
    assert isinstance(servers, SingleNode)
    return servers


@pytest.mark.parametrize(
    ("url", "connection", "expected"),
    [
        (
            "redis://cache.example:7000/3",
            Connection,
            {"host": "cache.example", "port": 7000, "db": 3},
        ),
        ("redis://me:p%2Fw@h/0", Connection, {"username": "me", "password": "p/w"}),
        ("redis://:pw@[::1]:6380", Connection, {"host": "::1", "port": 6380, "password": "pw"}),
        ("rediss://h/0?ssl_ca_certs=/ca.pem", SSLConnection, {"ssl_ca_certs": "/ca.pem"}),
        (
            "unix:///run/redis.sock?db=2",
            UnixDomainSocketConnection,
            {"path": "/run/redis.sock", "db": 2},
        ),
    ],
)
def test_one_server(url: str, connection: type, expected: dict[str, object]) -> None:
    pool = single(url)._pipeliner._pool
    assert pool.connection_class is connection
    assert expected.items() <= pool.connection_kwargs.items()


def test_sentinels_and_the_service_behind_them() -> None:
    servers = single("redis+sentinel://me:pw@one:26380,two/main/4")
    pool = servers._pipeliner._pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "main"
    assert {"username": "me", "password": "pw", "db": 4}.items() <= pool.connection_kwargs.items()
    hosts = [client.connection_pool.connection_kwargs for client in servers._sentinels]
    assert [(host["host"], host["port"]) for host in hosts] == [("one", 26380), ("two", 26379)]
    assert all(host.get("password") is None for host in hosts)


def test_sentinels_are_asked_over_tls_as_their_servers_are() -> None:
    servers = single("rediss+sentinel://me:pw@one/main?ssl_ca_certs=/ca.pem")
    pools = [servers._pipeliner._pool, *(client.connection_pool for client in servers._sentinels)]
    assert [issubclass(pool.connection_class, SSLConnection) for pool in pools] == [True, True]
    assert {pool.connection_kwargs["ssl_ca_certs"] for pool in pools} == {"/ca.pem"}


def test_the_nodes_of_a_cluster() -> None:
    servers = connect("rediss+cluster://me:pw@one:7000,two", TIMEOUTS)
    assert isinstance(servers, Cluster)
    assert servers._seeds == (("one", 7000), ("two", 6379))
    pool = servers._pipeliner(("one", 7000))._pool
    assert pool.connection_class is SSLConnection
    assert {"username": "me", "password": "pw"}.items() <= pool.connection_kwargs.items()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        connect("redis://one/abc", TIMEOUTS)
