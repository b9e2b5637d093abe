"""`metrics.listen`: an address of its own for whoever keeps the gateway running."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import Any

import aiohttp
import pytest

from tests.operations.site import (
    Line,
    Site,
    children_of,
    eventually,
    generate,
    line_to_each,
    session,
    write,
)
from tests.operations.site import document as content
from tests.running import GatewayProcess
from tests.simulated import SimulatedDashScope

OWN: dict[str, Any] = {"listen": {"host": "127.0.0.1", "port": 0}}


def own_url(gateway: GatewayProcess) -> str:
    """Where the gateway says that its metrics are."""
    return gateway.wait_for(r"metrics +(http://\S+)/metrics")[1]


async def get(
    client: aiohttp.ClientSession, url: str, **headers: str
) -> tuple[int, str, aiohttp.typedefs.LooseHeaders]:
    async with client.get(url, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


@pytest.mark.slow
async def test_each_address_has_its_own_paths(site: Site) -> None:
    """Proxies need deny nothing on the main one, and whoever reaches the other may read."""
    site.write(metrics=OWN)
    with site.start() as gateway:
        own = own_url(gateway)
        async with session() as client:
            await generate(client, gateway.url)
            status, text, headers = await get(client, f"{own}/metrics", **{"x-forwarded-for": "a"})
            assert (status, "gateway_requests_total" in text) == (200, True)
            assert "date" in headers
            for path in ("/healthz", "/readyz"):
                for url in (own, gateway.url):
                    assert (await get(client, url + path))[0] == 200, url + path
            for url in (f"{gateway.url}/metrics", f"{own}/v1/models", f"{own}/openapi.json"):
                status, text, headers = await get(client, url)
                assert (status, json.loads(text)["error"]["code"]) == (404, "not_found"), url
                assert "x-request-id" in headers


@pytest.mark.slow
async def test_networks_that_are_named_hold_there_too(site: Site) -> None:
    site.write(metrics={**OWN, "allow": ["10.0.0.0/8"]})
    with site.start(workers=1) as gateway:
        async with session() as client:
            assert (await get(client, f"{own_url(gateway)}/metrics"))[0] == 404
            assert (await get(client, f"{own_url(gateway)}/healthz"))[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_draining_gateway_is_scraped_until_its_end(
    workers: int, site: Site, vendor: SimulatedDashScope
) -> None:
    """By new connections, long after the main address refuses them; it says that it drains."""
    vendor.configure(latency_s=3.0)
    site.write(metrics=OWN, lame_duck_s=0.1)
    with site.start(workers=workers) as gateway:
        own = own_url(gateway)
        async with session() as client:
            call = asyncio.create_task(generate(client, gateway.url))
            await eventually(lambda: asyncio.to_thread(lambda: vendor.state(0)["in_flight"]), 10)
            gateway.stop()
            await eventually(lambda: refused(gateway.url), 5)

            async with session(force_close=True) as scraper:
                status, text, _ = await get(scraper, f"{own}/metrics")
                assert (status, "gateway_requests_in_flight 1.0" in text) == (200, True)
                status, text, _ = await get(scraper, f"{own}/readyz")
                assert (status, json.loads(text)) == (503, {"status": "draining"})
            assert not call.done()
            assert await call == 200
        assert await asyncio.to_thread(gateway.ended) == 0
        assert await refused(own)


async def refused(url: str) -> bool:
    """Whether nothing listens there any more."""
    try:
        line = await Line.to(url)
    except ConnectionRefusedError:
        return True
    line.close()
    return False


@pytest.mark.slow
async def test_a_worker_that_ends_alone_leaves_it_to_the_others(
    site: Site, vendor: SimulatedDashScope
) -> None:
    """Nobody hears of it that the gateway drains, which it does not."""
    vendor.configure(latency_s=2.0)
    site.write(metrics=OWN)
    with site.start() as gateway:
        own = own_url(gateway)
        lines = await line_to_each(gateway.url, children_of(gateway.pid))
        leaving = lines[0].worker(children_of(gateway.pid))
        assert leaving is not None
        call = asyncio.create_task(
            lines[0].ask("POST", "/v1/images/generations", body={"prompt": "a fox"})
        )
        await eventually(lambda: asyncio.to_thread(lambda: vendor.state(0)["in_flight"]), 10)
        os.kill(leaving, signal.SIGTERM)

        async with session(force_close=True) as scraper:
            asked = 0
            while not call.done():
                status, _, _ = await get(scraper, f"{own}/readyz")
                # Until it knows that it ends alone, a fifth of a second.
                assert status == 200 or asked < 20
                asked += 1
                await asyncio.sleep(0.02)
        assert asked > 30
        assert (await call)[0] == 200
        for each in lines:
            each.close()


@pytest.mark.slow
def test_a_taken_address_is_named(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(site.file, content(site.base_url, metrics={"listen": {"port": port}}))
        with GatewayProcess("serve", "--config", str(site.file)) as gateway:
            assert gateway.ended() == 1
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in gateway.output
