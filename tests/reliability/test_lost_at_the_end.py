"""What a gateway owes to Redis when it is told to end, and Redis is still away."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.operations.site import document, tenant, write
from tests.redis_server import RedisServer
from tests.running import ACME, GatewayProcess, until
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

REQUESTS = 3
LIMITS = {"images_per_day": 1000, "spend_per_month": 1000}


def test_what_redis_is_never_told_is_in_the_log(tmp_path: Path) -> None:
    """One line, with what somebody must book by hand, and with the results that are not kept."""
    with SimulatedDashScope(render="plain", latency_s=2) as vendor, RedisServer() as redis:
        content = document(
            vendor.base_url,
            redis={"url": redis.url},
            tenants=[tenant("acme", ACME, limits=LIMITS)],
        )
        file = write(tmp_path / "gateway.yaml", content)
        with GatewayProcess.serving(file) as gateway, ThreadPoolExecutor(REQUESTS) as pool:

            def generate(number: int) -> int:
                return httpx.post(
                    f"{gateway.url}/v1/images/generations",
                    json={"prompt": f"fox {number}", "model": "qwen-image-2.0", "n": 2},
                    headers={"authorization": f"Bearer {ACME}"},
                    trust_env=False,
                    timeout=30,
                ).status_code

            asked = [pool.submit(generate, number) for number in range(REQUESTS)]
            until(lambda: vendor.state(0)["in_flight"] == REQUESTS)
            redis.stop()
            assert [one.result() for one in asked] == [200] * REQUESTS
            gateway.stop()
            gateway.ended(60)
            redis.cont()
        lines = [json.loads(line) for line in gateway.output.splitlines() if line.startswith("{")]

    [settlements] = [line for line in lines if line["event"] == "settlements_lost"]
    lost = {"settlements": REQUESTS, "images": 2 * REQUESTS, "cost_micros": 400_000 * REQUESTS}
    assert settlements["level"] == "error"
    assert {name: settlements[name] for name in lost} == lost
    assert settlements["tenants"] == {"acme": lost}
    assert settlements["results"] == REQUESTS
