"""What clients see when Redis is killed, hangs, or comes back empty."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator

import pytest

from tests.figures import Figure
from tests.redis_server import RedisServer
from tests.reliability.client import get, statuses
from tests.reliability.fleet import Fleet
from tests.reliability.outage import LIMIT, check, tell, tenants, until_ready
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

AWAY_S = 2.0
KEPT_ON_DISK = ["--appendonly", "yes", "--appendfsync", "always"]


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(args=KEPT_ON_DISK) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(redis_server: RedisServer) -> Iterator[Fleet]:
    with (
        SimulatedDashScope(render="plain") as simulator,
        Fleet(
            simulator.base_url,
            {"url": redis_server.url},
            tenants("killed", "stopped", "emptied"),
        ) as fleet,
    ):
        yield fleet


@pytest.fixture(autouse=True)
async def all_is_well(fleet: Fleet) -> None:
    await until_ready(fleet.ports)


async def away() -> None:
    await asyncio.sleep(AWAY_S)


async def test_redis_is_killed(fleet: Fleet, redis_server: RedisServer, figure: Figure) -> None:
    """And comes back with what it had on disk."""

    async def lose() -> None:
        redis_server.kill()
        await away()
        found = (await get(fleet.ports[0], "/readyz")).body
        assert found["status"] == "degraded"
        assert found["parts"]["store"] == "unavailable"
        assert found["parts"]["limits"] == "without the store"

    async def back() -> None:
        await asyncio.to_thread(redis_server.restart)

    story = await tell(fleet, "killed", lose, back)
    check(story, 2 * LIMIT, figure)
    assert 503 in statuses(story.answers["budget"])
    assert story.added_ms() < 20


async def test_redis_hangs(fleet: Fleet, redis_server: RedisServer, figure: Figure) -> None:
    """SIGSTOP: it refuses nothing and answers nothing."""

    async def lose() -> None:
        redis_server.stop()
        await away()

    async def back() -> None:
        await asyncio.to_thread(redis_server.cont)

    story = await tell(fleet, "stopped", lose, back)
    check(story, 2 * LIMIT, figure)
    assert 503 in statuses(story.answers["budget"])
    assert story.added_ms() < 20


async def test_redis_is_restarted_empty(
    fleet: Fleet, redis_server: RedisServer, figure: Figure
) -> None:
    """At once: the shortest loss, and of everything."""

    async def lose() -> None:
        redis_server.kill()
        for file in redis_server.dir.glob("appendonly*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    async def back() -> None:
        await asyncio.to_thread(redis_server.restart)

    check(await tell(fleet, "emptied", lose, back), 3 * LIMIT, figure)
