"""Events pass the real proxies as they come: a client has one before the next is made."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from gateway.domain.catalogue import Rate
from tests.deploy.proxies import Start, envoy, nginx
from tests.image_events import EventReader
from tests.running import ACME, HeldClock, RunningGateway, account, config_for
from tests.simulated import SimulatedDashScope

MADE = "image_generation.completed"


@pytest.mark.parametrize("proxy", [nginx, envoy], ids=["nginx", "envoy"])
def test_an_event_passes_while_the_next_call_waits(
    proxy: Start,
    running_gateway: RunningGateway,
    simulator: SimulatedDashScope,
    clock: HeldClock,
    http: httpx.Client,
    tmp_path: Path,
) -> None:
    """The second slot comes only when the test's clock goes on."""
    clock.now = time.time()
    simulator.configure(image_bytes=1000)  # less than any buffer
    config = config_for(account(simulator.base_url, rates={"*": Rate(10)}))
    running_gateway.use(config, clock.clock())
    ports = [running_gateway.port, running_gateway.port]
    asked = {"model": "qwen-image-plus", "prompt": "a fox", "n": 2, "stream": True}
    with (
        proxy(ports, tmp_path) as url,
        http.stream(
            "POST",
            f"{url}/v1/images/generations",
            headers={"authorization": f"Bearer {ACME}"},
            json=asked,
        ) as answer,
    ):
        events = EventReader(answer)
        assert events.event()["type"] == MADE
        assert len(simulator.state()["log"]) == 1
        clock.now += 2
        assert events.event()["type"] == MADE
        assert events.rest() == []
    running_gateway.rest()
