"""Eight b64 answers of four images at once: every byte, in bounded memory.

`bench/delivery.py` measures the same with images of 8 MiB, and the speed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.figures import Figure
from tests.image_events import events_of
from tests.paying.shop import MODEL, Fleet, Vendor
from tests.running import ACME, Client

pytestmark = pytest.mark.timing

REQUESTS = 8
IMAGES = 4
MIB = 1024 * 1024
IMAGE_BYTES = 3 * MIB
GROWTH_MIB = 64


@pytest.mark.parametrize("stream", [False, True], ids=["one answer", "events"])
def test_all_bytes_arrive_in_bounded_memory(
    stream: bool, vendor: Vendor, http: httpx.Client, figure: Figure
) -> None:
    """96 MiB of images, 128 MiB as base64, while the worker grows by at most half of that."""
    vendor.time = time.time
    total = REQUESTS * IMAGES * IMAGE_BYTES
    vendor.configure(image_bytes=IMAGE_BYTES, rendered_max_bytes=2 * total)
    with Fleet(vendor, None, gateways=1, workers=1) as fleet:
        worker = fleet.gateways[0].pid
        shop = Client(http, fleet.urls[0])
        expected = [source(shop, seed) for seed in range(REQUESTS)]
        delivered(shop.url, 0, stream=stream)
        before = status_mib(worker, "VmRSS")
        Path(f"/proc/{worker}/clear_refs").write_text("5")
        with ThreadPoolExecutor(REQUESTS) as threads:
            get = partial(delivered, shop.url, stream=stream)
            found = list(threads.map(get, range(REQUESTS)))
        growth = status_mib(worker, "VmHWM") - before

    figure(f"{total // MIB} MiB of images, peak {growth:+.1f} MiB")
    assert found == expected
    assert growth <= GROWTH_MIB
    assert vendor.calls == REQUESTS  # both formats of a seed are one payment


def source(shop: Client, seed: int) -> list[str]:
    """What the URLs of the same generation serve."""
    answer = shop.generate(model=MODEL, n=IMAGES, seed=seed, response_format="url")
    contents = (shop.http.get(image["url"]).content for image in answer.json()["data"])
    return [hashlib.sha256(content).hexdigest() for content in contents]


def delivered(url: str, seed: int, *, stream: bool) -> list[str]:
    answer = httpx.post(
        f"{url}/v1/images/generations",
        headers={"authorization": f"Bearer {ACME}"},
        json={
            "prompt": "a fox",
            "model": MODEL,
            "n": IMAGES,
            "seed": seed,
            "response_format": "b64_json",
            "stream": stream,
        },
        timeout=60,
        trust_env=False,
    )
    found = events_of(answer) if stream else json.loads(answer.content)["data"]
    images = [base64.b64decode(image["b64_json"]) for image in found]
    return [hashlib.sha256(image).hexdigest() for image in images]


def status_mib(process: int, field: str) -> float:
    """A figure of /proc/PID/status."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field}")
