"""Requests that wait for a slot cost a little memory and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.figures import Figure
from tests.redis_server import RedisServer
from tests.reliability.client import PATH, connected, eventually, get, image_request
from tests.reliability.fleet import Fleet

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "bench" / "waiting.py"
REQUESTS = 200


async def test_waiting_requests_are_told_apart_in_the_metrics() -> None:
    with Fleet(
        "http://127.0.0.1:1/api/v1",
        None,
        {"acme": {}},
        gateways=1,
        workers=1,
        rates={"*": "1/min"},
        upstream={"deadline_s": 1_000_000},
    ) as fleet:
        (port,) = fleet.ports

        async def waiting() -> list[str]:
            lines = (await get(port, "/metrics")).body.splitlines()
            return [line for line in lines if line.startswith("gateway_queue_length{")]

        async def are_all() -> bool:
            # One has had its slot, found nobody there and waits for another.
            return await waiting() == [
                f'gateway_queue_length{{model="qwen-image-2.0"}} {REQUESTS:.1f}'
            ]

        async with connected([port] * REQUESTS) as connections:
            for connection in connections:
                connection.send("POST", PATH, fleet.keys["acme"], image_request())
            await eventually(are_all, 30)


@pytest.mark.parametrize("store", ["in-process", "redis"])
def test_five_thousand_wait_within_their_memory(
    store: str, redis_server: RedisServer, figure: Figure
) -> None:
    """And within no processor time: the program's exit status says so of both."""
    redis = ["--redis", redis_server.url] if store == "redis" else []
    # Tracing the lines for coverage costs memory in every frame.
    environment = {name: os.environ[name] for name in os.environ if "COV" not in name}
    program = [sys.executable, str(BENCH), "--seconds", "3", *redis]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
    figure(f"{store}: {'; '.join(ended.stdout.splitlines())}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
