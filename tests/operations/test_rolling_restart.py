"""Replacing every replica under load, behind the proxies that deploy/proxies configures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deploy.proxies import Start, envoy, free_port, nginx
from tests.operations.site import Load, Site
from tests.running import GatewayProcess
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.timing

PER_SECOND = 80
"""What one gateway alone answers in time on a slow machine, beside the proxy and these clients."""


@pytest.fixture
def replicas(site: Site, vendor: SimulatedDashScope) -> Iterator[tuple[ExitStack, list[int]]]:
    """Where processes are put that shall end with the test, and a port for each replica."""
    vendor.configure(latency_s=0.2)
    site.write()
    with ExitStack() as processes:
        yield processes, [free_port(), free_port()]


def restart(former: GatewayProcess, site: Site, port: int, processes: ExitStack) -> None:
    """As a platform does it: a signal, a clean end, and a successor at the same address."""
    former.stop()
    assert former.ended(30) == 0
    processes.enter_context(site.start("--port", str(port), workers=1))


@pytest.mark.parametrize("proxy", [nginx, envoy])
async def test_a_rolling_restart_loses_no_request(
    site: Site, replicas: tuple[ExitStack, list[int]], tmp_path: Path, proxy: Start
) -> None:
    """80 requests a second, two replicas, each restarted in turn: every answer is a 200."""
    processes, ports = replicas
    gateways = [
        processes.enter_context(site.start("--port", str(port), workers=1)) for port in ports
    ]
    with proxy(ports, tmp_path) as url:
        async with Load(url, PER_SECOND, force_close=False) as load:
            await asyncio.sleep(2)
            for gateway, port in zip(gateways, ports, strict=True):
                await asyncio.to_thread(restart, gateway, site, port, processes)
                await asyncio.sleep(1.5)
    assert dict(load.outcomes) == {"200": load.sent}
    assert load.sent > 5 * PER_SECOND


async def test_a_restart_without_a_proxy_loses_no_request_that_was_accepted(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """Every connection is new: whichever the kernel accepts is answered, the rest is refused."""
    vendor.configure(latency_s=0.1)
    site.write(lame_duck_s=0)
    with site.start() as gateway:
        async with Load(gateway.url, 150, force_close=True) as load:
            await asyncio.sleep(2)
            gateway.stop()
            assert await asyncio.to_thread(gateway.ended) == 0
    refused = sum(n for name, n in load.outcomes.items() if name.startswith("ClientConnectorError"))
    assert load.outcomes["200"] > 150
    assert load.outcomes["200"] + refused == load.sent, load.outcomes
