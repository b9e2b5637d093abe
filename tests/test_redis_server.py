from __future__ import annotations

import re
import socket

import pytest
import redis

from tests.redis_server import TESTED_ON, RedisServer, available_redis_servers, number_of
from tests.running import ROOT


def test_each_version_answers_and_runs_scripts(each_redis_url: str) -> None:
    with redis.Redis.from_url(each_redis_url) as client:
        assert client.eval("return redis.call('incr', KEYS[1])", 1, "k") == 1


def test_the_documented_releases_are_those_that_tests_run_on() -> None:
    """A machine that lacks one skips its tests, and says so."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    told = re.search(r"Tested on Redis ([\d.]+), ([\d.]+) and Valkey ([\d.]+):", text)
    assert told is not None
    assert {f"redis-{told[1]}", f"redis-{told[2]}", f"valkey-{told[3]}"} == set(TESTED_ON)


def test_the_newest_is_what_tests_run_on(redis_server: RedisServer) -> None:
    newest = max(available_redis_servers(), key=number_of)
    assert redis_server.binary == available_redis_servers()[newest]
    assert newest == "valkey-9.1" or number_of(newest) > (9, 1)


def test_tests_start_empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "over")


test_tests_start_empty_again = test_tests_start_empty


def test_a_unix_socket_reaches_it_too(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.unix_url) as client:
        assert client.ping()


def test_a_stopped_server_keeps_its_connections_and_answers_when_continued(
    own_redis_server: RedisServer,
) -> None:
    with redis.Redis.from_url(own_redis_server.url, socket_timeout=0.05, retry=None) as client:
        client.set("k", "v")
        own_redis_server.stop()
        with pytest.raises(redis.TimeoutError):
            client.get("k")
        own_redis_server.cont()
        assert client.get("k") == b"v"


def test_a_killed_server_refuses_and_restarts_empty_on_its_port(
    own_redis_server: RedisServer,
) -> None:
    url, pid = own_redis_server.url, own_redis_server.pid
    with redis.Redis.from_url(url, retry=None) as client:
        client.set("k", "v")
        own_redis_server.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("k")
        own_redis_server.restart()
        assert own_redis_server.url == url
        assert own_redis_server.pid != pid
        assert client.get("k") is None


def test_it_takes_arguments() -> None:
    with (
        RedisServer(args=["--maxmemory", "2mb"]) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": "2097152"}


def test_it_can_be_a_sentinel(redis_server: RedisServer) -> None:
    config = f"sentinel monitor main 127.0.0.1 {redis_server.port} 1"
    with RedisServer(args=["--sentinel"], config=config) as server:
        with redis.Redis.from_url(server.url) as client:
            address = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        assert address == [b"127.0.0.1", str(redis_server.port).encode()]


def test_it_can_be_a_cluster_node() -> None:
    with (
        RedisServer(args=["--cluster-enabled", "yes"]) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.info("cluster")["cluster_enabled"] == 1


def test_nothing_is_left_behind() -> None:
    with RedisServer() as server:
        folder, port = server.dir, server.port
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_wrong_argument_is_an_error_with_the_servers_own_words() -> None:
    with pytest.raises(RuntimeError, match="no-such-option"):
        RedisServer(args=["--no-such-option", "1"])
