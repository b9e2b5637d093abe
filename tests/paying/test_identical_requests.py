"""Fifty identical requests over two gateways of two workers each: one generation."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.store.generations import CacheStats
from gateway.store.redis import RedisStore, Timeouts
from tests.figures import Figure
from tests.paying.shop import MODEL, Fleet, Vendor, connected_to, kill, until_gone
from tests.redis_server import RedisServer
from tests.running import ACME

pytestmark = pytest.mark.slow

REQUESTS = 50
LATENCY_S = 4.0
"""Long enough for all of them to arrive meanwhile, on a busy machine too."""
SCOPE = "tenant:acme"


@pytest.fixture
def fleet(vendor: Vendor, own_redis_server: RedisServer) -> Iterator[Fleet]:
    """On a Redis of its own, in real time."""
    import time  # noqa: PLC0415

    vendor.time = time.time
    vendor.configure(latency_s=LATENCY_S)
    with Fleet(vendor, own_redis_server.url) as fleet:
        yield fleet


async def test_fifty_identical_requests_are_one_call(
    fleet: Fleet, vendor: Vendor, figure: Figure
) -> None:
    """The answers are the same but for their own ids."""
    async with clients() as http:
        answers = await asyncio.gather(*(ask(http, url) for url in spread(fleet)))

    told = Counter(answer.headers.get("x-cache") for answer in answers)
    figure(f"{vendor.calls} upstream call, {vendor.paid} image paid, x-cache {dict(told)}")
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == REQUESTS
    assert told == {"miss": 1, "joined": REQUESTS - 1}
    assert (vendor.calls, vendor.paid) == (1, 1)


async def test_the_leader_s_worker_is_killed_in_the_middle(
    fleet: Fleet, vendor: Vendor, own_redis_server: RedisServer, figure: Figure
) -> None:
    """Whoever was connected to it sends the request again, as the SDKs do."""
    resent: list[str] = []
    loop = asyncio.get_running_loop()
    async with clients() as http:
        asking = [asyncio.create_task(ask(http, url, resent)) for url in spread(fleet)]
        await until_all_wait(own_redis_server)
        leader = await one_connected(vendor, fleet)
        kill(leader)
        killed_at = loop.time()
        await asyncio.to_thread(until_gone, leader)
        answers = await asyncio.gather(*asking)
    took_s = loop.time() - killed_at

    told = Counter(answer.headers.get("x-cache") for answer in answers)
    figure(
        f"{vendor.calls} upstream calls, {len(answers)} answers {took_s:.1f} s after the kill, "
        f"{len(resent)} sent again, x-cache {dict(told)}"
    )
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert len({answer.content for answer in answers}) == 1
    assert told["miss"] <= 1
    assert 1 <= vendor.calls <= 2
    assert vendor.paid <= 2
    assert resent


def clients() -> httpx.AsyncClient:
    """A connection per request, so that the kernel spreads them over the workers."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(trust_env=False, timeout=60, limits=limits)


def spread(fleet: Fleet) -> list[str]:
    return [fleet.urls[number % len(fleet.urls)] for number in range(REQUESTS)]


async def ask(http: httpx.AsyncClient, url: str, resent: list[str] | None = None) -> httpx.Response:
    """As the SDKs do, it is sent again, marked, when the connection is lost."""
    headers = {"authorization": f"Bearer {ACME}"}
    body: dict[str, Any] = {"model": MODEL, "prompt": "a fox", "seed": 7, "response_format": "url"}
    for attempt in range(3):
        try:
            return await http.post(
                f"{url}/v1/images/generations",
                headers={**headers, "x-stainless-retry-count": str(attempt)},
                json=body,
            )
        except httpx.TransportError:
            if resent is None:
                raise
            resent.append(url)
            await asyncio.sleep(0.5)
    raise AssertionError("three connections were lost")


async def one_connected(vendor: Vendor, fleet: Fleet) -> int:
    """The worker that sends the call, once it does."""
    async with asyncio.timeout(20):
        while not (found := connected_to(vendor.port, fleet.workers)):  # noqa: ASYNC110 - others
            await asyncio.sleep(0.02)
    (leader,) = found
    return leader


async def until_all_wait(server: RedisServer) -> None:
    """Every request has found its place, one at the head."""
    store = RedisStore(server.url, timeouts=Timeouts(2, 2))

    def standing(stats: CacheStats) -> int:
        return stats.counts.get("led", 0) + stats.counts.get("joined", 0)

    async with asyncio.timeout(20):
        while standing(await store.cache_stats(SCOPE)) < REQUESTS:  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.02)
    await store.aclose()
