"""What all workers together admit while Redis is away, right after they were started."""

from __future__ import annotations

import asyncio

import pytest

from tests.figures import Figure
from tests.redis_server import RedisServer
from tests.reliability.client import burst, statuses
from tests.reliability.fleet import Fleet
from tests.reliability.outage import LIMIT, until_ready
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

REQUESTS = 400
KNOWN_AFTER_S = 1.5
"""By then every worker has heard of the last one to start."""


async def test_the_shares_of_workers_that_have_just_started_add_up(
    own_redis_server: RedisServer, figure: Figure
) -> None:
    """Nothing was admitted before, so all of them together admit the limit, and no more."""
    with (
        SimulatedDashScope(render="plain") as simulator,
        Fleet(
            simulator.base_url,
            {"url": own_redis_server.url},
            {"tight": {"requests_per_minute": LIMIT}},
        ) as fleet,
    ):
        await until_ready(fleet.ports)
        await asyncio.sleep(KNOWN_AFTER_S)
        own_redis_server.kill()
        answers = await burst(fleet.ports, REQUESTS, fleet.keys["tight"])
    admitted = statuses(answers).get(200, 0)
    figure(f"{admitted} admitted of a limit of {LIMIT}")
    assert set(statuses(answers)) == {200, 429}
    assert admitted <= LIMIT
