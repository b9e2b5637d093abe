"""The real SDKs give up after 2 s and ask twice more; the vendor takes 6 s: one image is paid.

All four run at the same time, each with a prompt of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.figures import Figure
from tests.paying.shop import MODEL, Fleet, Vendor
from tests.peers.run import PEERS, run_peer
from tests.redis_server import RedisServer
from tests.running import ACME

TIMEOUT_S = 2
LATENCY_S = 6.0
RETRIES = 2

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("sdk-retries")]


class Shoppers:
    """Every SDK at work on one gateway."""

    def __init__(self, vendor: Vendor, fleet: Fleet, threads: ThreadPoolExecutor) -> None:
        self.vendor = vendor
        self._replies: dict[str, Future[list[Any]]] = {
            peer: threads.submit(run_peer, peer, scenario(fleet.urls[0], peer)) for peer in PEERS
        }

    def reply(self, peer: str) -> Any:
        (reply,) = self._replies[peer].result()
        return reply


@pytest.fixture(scope="module", params=["one worker", "two workers"])
def shoppers(request: pytest.FixtureRequest) -> Iterator[Shoppers]:
    """Of two workers on Redis either may be asked by a retry."""
    with ExitStack() as stack:
        vendor = stack.enter_context(Vendor(latency_s=LATENCY_S))
        if request.param == "one worker":
            fleet = stack.enter_context(Fleet(vendor, None, gateways=1, workers=1))
        else:
            redis = stack.enter_context(RedisServer())
            fleet = stack.enter_context(Fleet(vendor, redis.url, gateways=1, workers=2))
        yield Shoppers(vendor, fleet, stack.enter_context(ThreadPoolExecutor()))


@pytest.mark.parametrize("peer", PEERS)
def test_an_impatient_sdk_pays_once(shoppers: Shoppers, peer: str, figure: Figure) -> None:
    """Its third try is given the image that the first one asked for."""
    reply = shoppers.reply(peer)

    calls = shoppers.vendor.calls_by_prompt()[prompt(peer)]
    outcome = "image" if reply["ok"] else f"{reply['class']} {reply['status']}"
    cache = reply["headers"].get("x-cache")
    figure(
        f"{calls} upstream call, {reply['attempts']} attempts in {reply['elapsed_s']:.1f} s, "
        f"{outcome}, x-cache {cache}"
    )
    assert reply["ok"], reply
    assert reply["attempts"] == 1 + RETRIES
    assert calls == 1
    assert cache in {"joined", "replayed"}


def test_nothing_else_was_paid(shoppers: Shoppers, figure: Figure) -> None:
    """One image for each SDK, once all are done."""
    asked = 0
    for peer in PEERS:
        try:
            shoppers.reply(peer)
        except pytest.skip.Exception:
            continue
        asked += 1
    time.sleep(0.5)

    figure(f"{asked} SDKs, {shoppers.vendor.calls} calls, {shoppers.vendor.paid} images paid")
    assert shoppers.vendor.calls == shoppers.vendor.paid == asked


def scenario(url: str, peer: str) -> dict[str, Any]:
    args = {"model": MODEL, "prompt": prompt(peer), "response_format": "url"}
    return {
        "base_url": f"{url}/v1",
        "api_key": ACME,
        "max_retries": RETRIES,
        "timeout": TIMEOUT_S,
        "calls": [{"method": "images.generate", "args": args}],
    }


def prompt(peer: str) -> str:
    return f"a fox for {peer}"
