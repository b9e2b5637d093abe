"""What clients see when Sentinels fail Redis over."""

from __future__ import annotations

import asyncio

import pytest

from tests.figures import Figure
from tests.reliability.client import statuses
from tests.reliability.fleet import Fleet
from tests.reliability.outage import LIMIT, check, tell, tenants
from tests.reliability.topologies import Replicated, connect
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing


async def test_a_sentinel_fails_over(figure: Figure) -> None:
    """The master is killed; what it had counted is with its replica."""
    with (
        Replicated() as servers,
        SimulatedDashScope(render="plain") as simulator,
        Fleet(simulator.base_url, {"url": servers.url}, tenants("failover")) as fleet,
    ):
        servers.wait_until_met()

        async def lose() -> None:
            connect(servers.master).wait(1, 5000)
            servers.master.kill()

        async def back() -> None:
            await asyncio.to_thread(servers.wait_until_failed_over)

        story = await tell(fleet, "failover", lose, back)
    check(story, 2 * LIMIT, figure)
    assert 503 in statuses(story.answers["budget"])
