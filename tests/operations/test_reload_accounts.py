"""Changing the accounts while requests wait for a slot of one of them: all are served."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import aiohttp
import pytest

from tests.operations.site import Site, generate, one_account, session

pytestmark = pytest.mark.timing

RATES = {"*": "2/s"}
WAITING = 12


@pytest.mark.parametrize(
    "changed",
    [
        [{"name": "new", "rates": RATES}],
        [{"name": "other", "rates": {"*": "10/s"}}, {"name": "simulated", "rates": RATES}],
        [{"name": "simulated", "rates": {"*": "10/s"}}],
    ],
    ids=["renamed", "one more", "another rate"],
)
async def test_nobody_who_waits_is_dropped(site: Site, changed: list[dict[str, Any]]) -> None:
    former = [one_account(site.base_url, name="simulated", rates=RATES)]
    site.write(accounts=former)
    with site.start() as gateway:
        async with session() as client:
            waiting = await begin(client, gateway.url)
            site.write(accounts=[one_account(site.base_url, **account) for account in changed])
            gateway.stop(signal.SIGHUP)
            assert await asyncio.gather(*waiting) == [200] * WAITING
        assert '"defect"' not in gateway.output


async def test_a_model_that_no_account_serves_any_more_is_refused(site: Site) -> None:
    """At once, as whoever comes after it is."""
    site.write(accounts=[one_account(site.base_url, rates=RATES)])
    with site.start() as gateway:
        async with session() as client:
            waiting = await begin(client, gateway.url)
            site.write(accounts=[one_account(site.base_url, models=["qwen-image-2.0-pro"])])
            gateway.stop(signal.SIGHUP)
            statuses = await asyncio.gather(*waiting)
        refused = refused_of(statuses)
        assert refused >= WAITING / 2
        assert '"defect"' not in gateway.output


async def begin(client: aiohttp.ClientSession, url: str) -> list[asyncio.Task[int]]:
    """Calls of which some have had their slots by now."""
    calls = [asyncio.create_task(generate(client, url, seed=seed)) for seed in range(WAITING)]
    await asyncio.sleep(1.2)
    return calls


def refused_of(statuses: list[int]) -> int:
    """How many were refused; the others had their slots before."""
    assert set(statuses) <= {200, 502}
    return sum(status != 200 for status in statuses)
