"""What clients see while a Cluster is resharded."""

from __future__ import annotations

import asyncio

import pytest

from tests.figures import Figure
from tests.reliability.client import statuses
from tests.reliability.fleet import Fleet
from tests.reliability.outage import LIMIT, PER_SECOND, check, tell, tenants
from tests.reliability.topologies import Cluster
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

RESHARDED_S = 2.0
MOVED_EVERY_S = 0.05


async def test_a_cluster_is_resharded(figure: Figure) -> None:
    """The slots of every tenant move on, again and again, while their counters are in use."""
    with (
        Cluster() as servers,
        SimulatedDashScope(render="plain") as simulator,
        Fleet(simulator.base_url, {"url": servers.url}, tenants("resharded")) as fleet,
    ):
        moves = 0

        async def lose() -> None:
            nonlocal moves
            loop = asyncio.get_running_loop()
            end = loop.time() + RESHARDED_S
            while loop.time() < end:
                for name in PER_SECOND:
                    key = f"gateway:{{t:resharded-{name}}}:window"
                    await asyncio.to_thread(servers.move, key)
                    moves += 1
                    await asyncio.sleep(MOVED_EVERY_S)

        async def back() -> None:
            """It was never away."""

        story = await tell(fleet, "resharded", lose, back)
    figure(f"{moves} slots moved")
    check(story, 2 * LIMIT, figure)
    # A call that meets a slot on its way is repeated for 100 ms, which one in a hundred may exceed
    # where the servers wait for a processor.
    assert statuses(story.everyone).get(503, 0) <= len(story.everyone) / 50
