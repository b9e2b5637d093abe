"""Clients that hang up at any moment hold nothing back."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from gateway.config import Limits, Redis
from gateway.config.decode import Secret
from gateway.domain.catalogue import Rate
from tests.running import ACME, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

HANG_UPS = 150
ROOM = 40
PATIENCE_S = 15


def hang_up(url: str, number: int, after_s: float, **fields: object) -> None:
    """Send a request, and reset the connection a moment later."""
    parts = urlsplit(url)
    wanted = {"prompt": f"fox {number}", "model": "qwen-image-2.0"} | fields
    body = json.dumps(wanted).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(head.encode() + body)
        time.sleep(after_s)


@pytest.mark.slow
def test_the_leases_of_clients_that_hung_up_come_back(
    start: Start, simulator: SimulatedDashScope
) -> None:
    """A lease that nobody settles would be renewed for as long as the worker lives."""
    config = config_for(account(simulator.base_url))
    limited = tuple(
        replace(tenant, limits=Limits(concurrent_requests=ROOM)) for tenant in config.tenants
    )
    gateway = start(replace(config, tenants=limited))
    simulator.configure(latency_s=0.02)
    chance = Random(7)
    with ThreadPoolExecutor(ROOM) as pool:
        moments = [chance.uniform(0, 0.01) for _ in range(HANG_UPS)]
        list(pool.map(hang_up, [gateway.url] * HANG_UPS, range(HANG_UPS), moments))

    simulator.configure(latency_s=0.5)
    until = time.monotonic() + PATIENCE_S
    statuses: set[int] = set()
    while statuses != {200} and time.monotonic() < until:
        with ThreadPoolExecutor(ROOM) as pool:
            asked = [
                pool.submit(gateway.generate, f"owl {n}", model="qwen-image-2.0")
                for n in range(ROOM)
            ]
            statuses = {one.result().status_code for one in asked}

    assert statuses == {200}


@pytest.mark.slow
def test_who_takes_over_is_counted_once_and_keeps_its_place(
    start: Start, simulator: SimulatedDashScope, redis_url: str
) -> None:
    """It was admitted already: another's hanging up must not have it refused."""
    config = config_for(account(simulator.base_url, rates={"*": Rate(0.5)}))
    limits = Limits(requests_per_minute=3, images_per_minute=2, concurrent_requests=2)
    limited = tuple(replace(tenant, limits=limits) for tenant in config.tenants)
    redis = Redis(url=Secret(redis_url))  # in process, slots go by the clock that the tests hold
    gateway = start(replace(config, tenants=limited, redis=redis))
    assert gateway.generate("first", model="qwen-image-2.0").status_code == 200

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(hang_up, gateway.url, 1, 0.6, seed=1)
        time.sleep(0.3)
        answer = gateway.generate("fox 1", model="qwen-image-2.0", seed=1)
        leader.result()

    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-remaining-images"] == "0"
    assert sum(simulator.state()["paid"].values()) == 2
