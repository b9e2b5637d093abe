"""Eight edits of three pictures of 10 MB at once: each is sent whole, in bounded memory."""

from __future__ import annotations

import base64
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.figures import Figure
from tests.paying.shop import MODEL, Fleet, Vendor
from tests.pictures import noise, picture
from tests.running import ACME

pytestmark = pytest.mark.timing

REQUESTS: Final = 8
PICTURES: Final = 3
MIB: Final = 1024 * 1024
GROWTH_MIB: Final = 128
LATENCY_S: Final = 3.0
"""Longer than reading takes, so that all of them wait at once."""


@pytest.mark.parametrize("form", ["multipart", "json"])
def test_eight_large_edits_at_once(form: str, vendor: Vendor, figure: Figure) -> None:
    """240 MB of pictures, 320 MB as base64, while the worker grows by at most 128 MiB."""
    vendor.time = time.time
    images = [noise("PNG", (1900, 1900)), noise("JPEG", (2700, 2700), quality=97)]
    images.append(noise("PNG", (1880, 1900)))
    assert all(9 * MIB < len(image) <= 10 * MIB for image in images)
    with Fleet(vendor, None, gateways=1, workers=1) as fleet:
        worker = fleet.gateways[0].pid
        assert edited(fleet.urls[0], "warm up", [picture()], form) == 200
        vendor.configure(latency_s=LATENCY_S)
        before = status_mib(worker, "VmRSS")
        Path(f"/proc/{worker}/clear_refs").write_text("5")
        with ThreadPoolExecutor(REQUESTS) as threads:
            ask = [
                threads.submit(edited, fleet.urls[0], f"hat {index}", images, form)
                for index in range(REQUESTS)
            ]
            time.sleep(LATENCY_S)
            statuses = Counter(each.result() for each in ask)
        growth = status_mib(worker, "VmHWM") - before
        left = status_mib(worker, "VmRSS") - before

    total = REQUESTS * sum(map(len, images))
    figure(f"{form}: {total // 1_000_000} MB of pictures, peak {growth:+.1f}, then {left:+.1f} MiB")
    assert statuses == {200: REQUESTS}
    calls = [call for call in vendor.state()["log"] if len(call["inputs"]) == PICTURES]
    assert len(calls) == REQUESTS
    assert len({str(call["inputs"]) for call in calls}) == 1
    assert growth <= GROWTH_MIB


def edited(url: str, prompt: str, images: list[bytes], form: str) -> int:
    """Its status."""
    fields = {"prompt": prompt, "model": MODEL, "seed": "1"}
    body: dict[str, Any]
    if form == "json":
        urls = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in images)
        body = {"json": {**fields, "seed": 1, "images": [{"image_url": each} for each in urls]}}
    else:
        body = {"data": fields, "files": [("image[]", ("upload", image)) for image in images]}
    headers = {"authorization": f"Bearer {ACME}"}
    edits = f"{url}/v1/images/edits"
    return httpx.post(edits, headers=headers, timeout=60, trust_env=False, **body).status_code


def status_mib(process: int, field: str) -> float:
    """A figure of /proc/PID/status."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field}")
