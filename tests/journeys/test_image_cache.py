"""Images' bytes beside a cached result: a hit after its URLs have died, and what is counted."""

from __future__ import annotations

import base64
import time

import httpx
import pytest
from msgspec.structs import replace

from gateway.config import Cache, Config, ImageCache, Images, Key, Tenant
from gateway.config.decode import Secret
from gateway.tenants.keys import hash_key
from tests.running import ACME, Client, HeldClock, Logs, account, config_for
from tests.running_fixtures import Start
from tests.simulated import SimulatedDashScope

WEEK_S = 7 * 86_400.0
SIZE = 100_000
MIB = 1024 * 1024
IMAGES = Images(allowed_hosts=("127.0.0.1",), allow_http=True)
TENANT = Tenant(name="acme", keys=(Key(hash=hash_key(ACME)),), cache=Cache(ttl_s=WEEK_S))


@pytest.fixture(autouse=True)
def vendor_and_gateway_agree(simulator: SimulatedDashScope, clock: HeldClock) -> None:
    """On when a URL dies."""
    clock.now = time.time()
    simulator.configure(image_bytes=SIZE)


def configuration(simulator: SimulatedDashScope, image_cache: ImageCache, images: Images) -> Config:
    return config_for(
        account(simulator.base_url), tenants=(TENANT,), images=images, image_cache=image_cache
    )


def total(gateway: Client, series: str) -> float:
    lines = gateway.http.get(f"{gateway.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


def ask(gateway: Client, n: int = 2) -> httpx.Response:
    answer = gateway.generate(
        model="qwen-image-2.0", size="512x512", n=n, seed=1, response_format="b64_json"
    )
    assert answer.status_code == 200
    return answer


def size_of(answer: httpx.Response) -> int:
    return sum(len(base64.b64decode(image["b64_json"])) for image in answer.json()["data"])


def test_a_hit_after_the_urls_have_died_is_counted_in_bytes(
    start: Start, simulator: SimulatedDashScope, clock: HeldClock
) -> None:
    gateway = start(configuration(simulator, ImageCache(), IMAGES))
    made = ask(gateway)
    size = size_of(made)
    assert size >= 2 * SIZE
    assert total(gateway, "gateway_image_cache_kept_bytes_total") == size
    assert total(gateway, "gateway_image_cache_served_bytes_total") == 0

    clock.now += 2 * 86_400
    found = ask(gateway)

    assert found.headers["x-cache"] == "hit"
    assert found.json()["data"] == made.json()["data"]
    assert total(gateway, "gateway_image_cache_served_bytes_total") == size
    assert total(gateway, "gateway_image_cache_kept_bytes_total") == size
    assert total(gateway, "gateway_image_cache_not_kept_total") == 0


@pytest.mark.parametrize(
    ("cause", "size", "settings"),
    [
        ("no_memory", 2 * MIB, ImageCache()),
        ("too_large", SIZE, ImageCache(max_image_bytes=SIZE // 2)),
        ("no_room", SIZE, ImageCache(budget_bytes=SIZE // 2)),
        ("store_unavailable", SIZE, ImageCache(url=Secret("redis://127.0.0.1:1/0"))),
    ],
)
def test_an_image_that_is_not_kept_is_counted_and_logged(
    cause: str,
    size: int,
    settings: ImageCache,
    start: Start,
    simulator: SimulatedDashScope,
    logs: Logs,
) -> None:
    """Its answer has it all the same; the worker's memory has room for 1 MiB."""
    simulator.configure(image_bytes=size)
    gateway = start(configuration(simulator, settings, replace(IMAGES, budget_bytes=MIB)))
    answer = ask(gateway, n=1)

    assert size_of(answer) >= size
    assert total(gateway, f'gateway_image_cache_not_kept_total{{cause="{cause}"}}') == 1
    assert total(gateway, "gateway_image_cache_kept_bytes_total") == 0
    [line] = logs.named("image_not_kept")
    assert (line["cause"], line["bytes"]) == (cause, size_of(answer))
    assert line["request_id"] == answer.headers["x-request-id"]
