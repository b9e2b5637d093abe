"""What asks every few seconds leaves no line in the log, unless something is wrong or changes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.config import Metrics, OnLoss, Redis
from gateway.config.decode import Secret
from tests.redis_server import RedisServer
from tests.running import Client, Logs, account, config_for, until
from tests.running_fixtures import Start


def levels(logs: Logs) -> set[str]:
    return {line["level"] for line in logs.named("answered")}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_a_probe_that_succeeds_is_for_debugging(path: str, gateway: Client, logs: Logs) -> None:
    for _ in range(3):
        assert gateway.ask("GET", path).status_code == 200

    assert levels(logs) == {"debug"}


def test_a_scrape_that_is_refused_is_told(start: Start, logs: Logs) -> None:
    config = config_for(account("http://127.0.0.1:1"))
    gateway = start(replace(config, metrics=Metrics(allow=())))

    assert gateway.ask("GET", "/metrics").status_code == 404

    assert levels(logs) == {"info"}


def test_a_change_of_readiness_is_told_once(
    start: Start, logs: Logs, own_redis_server: RedisServer
) -> None:
    redis = Redis(url=Secret(own_redis_server.url), on_loss=OnLoss(budgets="local"))
    gateway = start(config_for(account("http://127.0.0.1:1"), redis=redis))

    def says(status: str) -> bool:
        found: str = gateway.ask("GET", "/readyz").json()["status"]
        return found == status

    until(lambda: says("ready"))
    own_redis_server.stop()
    until(lambda: says("degraded"))
    assert says("degraded")

    changes = [(line["before"], line["status"]) for line in logs.named("readiness_changed")]
    assert changes[-2:] == [(changes[-2][0], "ready"), ("ready", "degraded")]
    assert len(changes) == len(set(changes))
    assert levels(logs) == {"debug"}
