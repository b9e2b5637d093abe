"""A gateway that never had its Redis takes nobody's place; one that lost it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.topologies import Nodes, own_nodes
from tests.operations.site import document, write
from tests.redis_proxy import RedisProxy
from tests.redis_server import RedisServer
from tests.running import GatewayProcess, until

__all__ = ["own_nodes"]
pytestmark = pytest.mark.timing

QUICK = {"connect_timeout_ms": 2000, "command_timeout_ms": 2000}
NO_VENDOR = "http://127.0.0.1:1/api/v1"


def ready(gateway: GatewayProcess) -> tuple[int, Any]:
    answer = httpx.get(f"{gateway.url}/readyz", trust_env=False)
    return answer.status_code, answer.json()


def serving(folder: Path, url: str) -> GatewayProcess:
    redis = {"url": url, **QUICK}
    file = write(folder / "gateway.yaml", document(NO_VENDOR, redis=redis))
    return GatewayProcess.serving(file, "--workers", "2")


def test_a_wrong_password_is_not_ready(tmp_path: Path) -> None:
    """On any worker; and neither the password nor the host is told."""
    with RedisServer(config="requirepass right") as redis:
        url = f"redis://:mistaken@127.0.0.1:{redis.port}/0"
        with serving(tmp_path, url) as gateway:
            for _ in range(20):
                status, body = ready(gateway)
                assert (status, body["status"]) == (503, "unready")
                assert body["parts"]["store"] == "unavailable"
                assert "mistaken" not in str(body)
                assert str(redis.port) not in str(body)


@pytest.mark.parametrize("rule", ["-evalsha -eval -script", "-get -set -hset -hget -zadd -incrby"])
def test_a_user_without_the_rights_is_not_ready(tmp_path: Path, rule: str) -> None:
    """It may ping, and nothing that the gateway is there for."""
    with (
        RedisServer(config=f"user weak on >pw ~* &* +@all {rule}") as redis,
        serving(tmp_path, f"redis://weak:pw@127.0.0.1:{redis.port}/0") as gateway,
    ):
        until(lambda: ready(gateway)[0] == 503)


def test_a_proxy_that_refuses_scripts_is_not_ready(tmp_path: Path) -> None:
    """It answers PING; the rule is named, and once it is switched off the gateway is ready."""
    with (
        RedisServer() as redis,
        RedisProxy(redis.port) as proxy,
        serving(tmp_path, proxy.url) as gateway,
    ):
        for _ in range(10):
            status, body = ready(gateway)
            assert (status, body["status"]) == (503, "unready")
            assert "script_check_enable" in body["reason"]
            assert str(proxy.port) not in str(body)
        proxy.script_check_enable = False
        until(lambda: ready(gateway) == (200, {"status": "ready", "parts": {"store": "ok"}}))


def test_a_cluster_by_the_address_of_one_server_is_not_ready(
    tmp_path: Path, own_nodes: Nodes
) -> None:
    with serving(tmp_path, own_nodes.servers[0].url) as gateway:
        status, body = ready(gateway)

    assert status == 503
    assert "this is a cluster: use redis+cluster://" in body["reason"]


def test_a_redis_that_was_there_once_may_go(tmp_path: Path) -> None:
    with RedisServer() as redis, serving(tmp_path, redis.url) as gateway:
        until(lambda: ready(gateway) == (200, {"status": "ready", "parts": {"store": "ok"}}))
        redis.kill()
        until(lambda: ready(gateway)[1]["parts"].get("limits") == "without the store")
        assert all(ready(gateway)[0] == 200 for _ in range(20))


def test_a_redis_that_comes_late_makes_it_ready(tmp_path: Path) -> None:
    with RedisServer() as redis:
        redis.kill()
        with serving(tmp_path, redis.url) as gateway:
            assert ready(gateway)[0] == 503
            redis.restart()
            until(lambda: all(ready(gateway)[0] == 200 for _ in range(10)))
