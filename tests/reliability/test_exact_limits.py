"""Two gateways of two workers each, 2,000 requests at once, a limit of 100: exactly 100."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest

from tests.figures import Figure
from tests.redis_server import RedisServer
from tests.reliability.client import (
    PATH,
    burst,
    connected,
    image_request,
    statuses,
)
from tests.reliability.fleet import PATIENT, ROOMY, Fleet
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

REQUESTS = 2_000
PRICE = Decimal("0.2")
"""Of one image of qwen-image-2.0, in the shipped catalogue."""
LIMITS: dict[str, tuple[object, int]] = {
    "requests_per_minute": (100, 1),
    "images_per_minute": (100, 2),
    "images_per_day": (100, 2),
    "spend_per_month": (float(100 * PRICE), 1),
}
SLOW = "qwen-image-plus"
"""The limit, and the images of each request."""


@pytest.fixture(scope="module")
def gate() -> threading.Event:
    """The vendor's slow model answers once it is open."""
    return threading.Event()


@pytest.fixture(scope="module")
def simulator(gate: threading.Event) -> Iterator[SimulatedDashScope]:
    async def until_open(_seconds: float) -> None:
        await asyncio.to_thread(gate.wait)

    latency_s = {SLOW: 1, "*": 0}
    with SimulatedDashScope(render="plain", latency_s=latency_s, sleep=until_open) as simulator:
        yield simulator
        gate.set()


@pytest.fixture(scope="module")
def fleet(simulator: SimulatedDashScope) -> Iterator[Fleet]:
    tenants = {kind: {**ROOMY, kind: limit} for kind, (limit, _) in LIMITS.items()}
    tenants["concurrent_requests"] = {**ROOMY, "concurrent_requests": 100}
    with (
        RedisServer() as server,
        Fleet(simulator.base_url, {"url": server.url, **PATIENT}, tenants) as fleet,
    ):
        yield fleet


def used(usage: dict[str, Any]) -> dict[str, Decimal]:
    """Of each limit, by what is left."""
    return {
        kind: Decimal(level["limit"]) - Decimal(level["remaining"])
        for kind, level in usage["limits"].items()
    }


@pytest.mark.parametrize("kind", LIMITS)
async def test_exactly_the_limit_is_admitted_and_the_refused_leave_no_trace(
    kind: str, fleet: Fleet, simulator: SimulatedDashScope, figure: Figure
) -> None:
    """In none of the five counters: each would show it, being far from its limit."""
    n = LIMITS[kind][1]
    admitted = 100 // n
    simulator.reset()
    answers = await burst(fleet.ports, REQUESTS, fleet.keys[kind], n=n)
    assert statuses(answers) == {200: admitted, 429: REQUESTS - admitted}
    codes = {answer.code for answer in answers if answer.status == 429}
    assert len(codes) == 1
    usage = await fleet.usage(kind)
    assert used(usage) == {
        "requests_per_minute": admitted,
        "images_per_minute": 100,
        "concurrent_requests": 0,
        "images_per_day": 100,
        "spend_per_month": 100 * PRICE,
    }
    (today,) = usage["today"].values()
    assert (today["requests"], today["images"]) == (admitted, 100)
    assert simulator.state(0)["paid"] == {"qwen-image-2.0": 100}
    took_s = max(answer.at + answer.took_s for answer in answers) - min(a.at for a in answers)
    figure(f"{REQUESTS} at once, {admitted} admitted, {codes.pop()}, in {took_s:.1f} s")


async def test_exactly_the_limit_runs_at_once(
    fleet: Fleet,
    simulator: SimulatedDashScope,
    gate: threading.Event,
    figure: Figure,
) -> None:
    """The vendor does not answer until all others are refused; then all are free again."""
    simulator.reset()
    async with connected([fleet.ports[number % 2] for number in range(REQUESTS)]) as connections:
        for connection in connections:
            connection.send("POST", PATH, fleet.keys["concurrent_requests"], image_request(SLOW))
        answers = asyncio.as_completed([one.answer() for one in connections], timeout=60)
        refused = [await answer for answer in islice(answers, REQUESTS - 100)]
        assert statuses(refused) == {429: REQUESTS - 100}
        assert simulator.state(0)["in_flight"] == 100
        while_running = used(await fleet.usage("concurrent_requests"))
        gate.set()
        assert statuses([await answer for answer in answers]) == {200: 100}
    assert simulator.state(0)["paid"] == {SLOW: 100}
    ended = await fleet.usage("concurrent_requests")
    expected = {**dict.fromkeys(ROOMY, 100), "spend_per_month": while_running["spend_per_month"]}
    assert while_running == expected
    assert used(ended) == {**expected, "concurrent_requests": 0}
    assert fleet.printed_usage("concurrent_requests") == ended
    figure(f"{REQUESTS} at once, 100 admitted")
