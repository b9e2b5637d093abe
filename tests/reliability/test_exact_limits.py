"""Two gateways of two workers each, 2,000 requests at once, a limit of 100: exactly 100."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.reliability.client import (
    PATH,
    Answer,
    Connection,
    burst,
    connected,
    eventually,
    image_request,
    statuses,
)
from tests.reliability.fleet import ROOMY, Fleet
from tests.running import until
from tests.simulated import SimulatedDashScope

REQUESTS = 2_000
PRICE = Decimal("0.2")
"""Of one image of qwen-image-2.0, in the shipped catalogue."""
PATIENT = {"connect_timeout_ms": 5000, "command_timeout_ms": 5000}
"""For a machine of two cores that runs four workers and their clients: a store that is slow is not
one that is away, and here nothing is."""
LIMITS: dict[str, tuple[object, int]] = {
    "requests_per_minute": (100, 1),
    "images_per_minute": (100, 2),
    "images_per_day": (100, 2),
    "spend_per_month": (float(100 * PRICE), 1),
}
"""The limit, and the images of each request."""


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatedDashScope]:
    with SimulatedDashScope(render="plain") as simulator:
        yield simulator


@pytest.fixture(scope="module")
def fleet(simulator: SimulatedDashScope) -> Iterator[Fleet]:
    tenants = {kind: {**ROOMY, kind: limit} for kind, (limit, _) in LIMITS.items()}
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
    kind: str, fleet: Fleet, simulator: SimulatedDashScope, figure: Callable[[str], None]
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


async def test_exactly_the_limit_runs_at_once(figure: Callable[[str], None]) -> None:
    """The vendor does not answer until all others are refused; then it fails, and all is free."""
    with (
        SimulatedDashScope(render="plain", latency_s=600) as simulator,
        RedisServer() as server,
        Fleet(
            simulator.base_url,
            {"url": server.url, **PATIENT},
            {"busy": {**ROOMY, "concurrent_requests": 100}},
        ) as fleet,
    ):
        async with connected([fleet.ports[i % 2] for i in range(REQUESTS)]) as connections:
            for connection in connections:
                connection.send("POST", PATH, fleet.keys["busy"], image_request())
            refused = await first_answers(connections, REQUESTS - 100)
            assert statuses(refused) == {429: REQUESTS - 100}
            until(lambda: simulator.state(0)["in_flight"] == 100)
            assert used(await fleet.usage("busy")) == {
                "requests_per_minute": 100,
                "images_per_minute": 100,
                "concurrent_requests": 100,
                "images_per_day": 100,
                "spend_per_month": 100 * PRICE,
            }
            simulator.close()

        async def all_have_ended() -> bool:
            return used(await fleet.usage("busy"))["concurrent_requests"] == 0

        await eventually(all_have_ended)
        left = await fleet.usage("busy")
        assert used(left) == {**dict.fromkeys(ROOMY, 0), "requests_per_minute": 100}
        assert fleet.printed_usage("busy") == left
    figure(f"{REQUESTS} at once, 100 admitted")


async def first_answers(connections: list[Connection], count: int) -> list[Answer]:
    """Those that are answered, the others being left to wait."""
    answers = [asyncio.ensure_future(connection.answer()) for connection in connections]
    return [await answer for answer in islice(asyncio.as_completed(answers, timeout=60), count)]
