"""`kill -9` of a worker with ten requests in flight: what it held comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.figures import Figure
from tests.redis_server import RedisServer
from tests.reliability.client import Answer, ask, asked, eventually, get, statuses
from tests.reliability.fleet import PATIENT, Fleet, kill, workers_of
from tests.running import until
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

LEASE_S = 30.0
"""`gateway.tenants.admission.LEASE_MS`'s; the configuration has no key for it."""
IN_FLIGHT = 10
SLOW = "qwen-image-plus"
LIMITS = {
    "requests_per_minute": 100_000,
    "images_per_minute": 100,
    "concurrent_requests": IN_FLIGHT,
    "images_per_day": 100,
    "spend_per_month": 20,
}


@pytest.fixture
def simulator() -> Iterator[SimulatedDashScope]:
    with SimulatedDashScope(render="plain", latency_s={SLOW: 600, "*": 0}) as simulator:
        yield simulator


@pytest.fixture
def fleet(simulator: SimulatedDashScope) -> Iterator[Fleet]:
    with (
        RedisServer() as server,
        Fleet(
            simulator.base_url, {"url": server.url, **PATIENT}, {"acme": LIMITS}, gateways=1
        ) as fleet,
    ):
        yield fleet


def left(usage: dict[str, Any]) -> dict[str, Any]:
    return {kind: level["remaining"] for kind, level in usage["limits"].items()}


async def test_a_killed_worker_gives_everything_back_within_its_lease(
    fleet: Fleet, simulator: SimulatedDashScope, figure: Figure
) -> None:
    """Concurrency, images and money; and there is a new worker in its place at once."""
    (port,), (gateway,), key = fleet.ports, fleet.gateways, fleet.keys["acme"]
    first, other = workers_of(gateway)
    # Only one of the two takes connections, so all ten are its own.
    os.kill(other, signal.SIGSTOP)
    async with asked(port, [key] * IN_FLIGHT, model=SLOW) as connections:
        await asyncio.to_thread(until, lambda: simulator.state(0)["in_flight"] == IN_FLIGHT)
        os.kill(other, signal.SIGCONT)
        held = left(await fleet.usage("acme"))
        assert held["concurrent_requests"] == 0
        assert (held["images_per_minute"], held["images_per_day"]) == (90, 90)
        assert held["spend_per_month"] != "20"
        kill(first)
        killed_at = time.monotonic()
        lost = await asyncio.gather(*(connection.answer() for connection in connections))
    assert statuses(lost) == {0: IN_FLIGHT}
    await asyncio.to_thread(until, lambda: len({*workers_of(gateway)} - {first}) == 2)
    replaced_s = time.monotonic() - killed_at

    probes: list[Answer] = []

    async def is_admitted() -> bool:
        probes.append(await ask(port, key))
        await asyncio.sleep(0.1)
        return probes[-1].status == 200

    await eventually(is_admitted, within_s=LEASE_S + 5)
    free_s = time.monotonic() - killed_at
    free = left(await fleet.usage("acme"))
    assert set(statuses(probes)) == {200, 429}
    assert free["concurrent_requests"] == IN_FLIGHT
    # All but the one image of the probe that was admitted.
    assert (free["images_per_minute"], free["images_per_day"]) == (99, 99)
    assert free["spend_per_month"] == "19.8"
    assert free_s < LEASE_S + 2
    assert replaced_s < 5
    figure(f"a new worker after {replaced_s:.1f} s, everything free after {free_s:.1f} s")
    assert (await get(port, "/healthz")).status == 200
