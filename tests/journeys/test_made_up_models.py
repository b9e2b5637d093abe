"""Names that a caller makes up have no pace, no queue and no state of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import pytest

from gateway.config import Upstream
from tests.running import Client, RunningGateway, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

MODEL = "qwen-image-plus"


@pytest.mark.slow
@pytest.mark.usefixtures("logs")
def test_made_up_snapshots_share_the_pace_of_their_model(
    running_gateway: RunningGateway, http: httpx.Client, simulator: SimulatedDashScope
) -> None:
    """Each had one of its own: an account of two calls a second was sent six hundred."""
    running_gateway.use(config_for(account(simulator.base_url, rates={})))  # by the real clock
    gateway = Client(http, running_gateway.url)
    names = [f"{MODEL}-20{year}-12-31" for year in range(30, 36)]

    with ThreadPoolExecutor(len(names)) as threads:
        answers = list(threads.map(lambda name: gateway.generate(model=name), names))

    assert {answer.json()["error"]["code"] for answer in answers} == {"model_not_found"}
    arrived = sorted(call["at"] for call in simulator.state()["log"])
    assert len(arrived) == len(names)
    apart = [later - earlier for earlier, later in pairwise(arrived)]
    assert min(apart) > 0.4


def test_a_made_up_snapshot_does_not_move_the_others_to_the_next_account(
    start: Start, simulator: SimulatedDashScope, other_simulator: SimulatedDashScope
) -> None:
    first, second = account(simulator.base_url, "first"), account(other_simulator.base_url, "2nd")
    gateway = start(config_for(first, second, upstream=Upstream(deadline_s=20)))
    assert gateway.generate(model=f"{MODEL}-2031-01-01").status_code == 404

    assert gateway.generate(model=MODEL).status_code == 200

    asked = [call["body"]["model"] for call in simulator.state()["log"]]
    assert asked == [f"{MODEL}-2031-01-01", MODEL]
