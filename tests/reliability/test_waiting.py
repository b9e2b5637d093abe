"""Requests that wait for a slot cost a little memory and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.figures import Figure
from tests.redis_server import RedisServer
from tests.reliability.client import PATH, connected, get, image_request
from tests.reliability.fleet import Fleet

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "bench" / "waiting.py"
REQUESTS = 1_000
IDLE = 0.05
"""Of a processor, over what the same gateway uses while nothing waits."""


def processor_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def used(process: int, span_s: float) -> float:
    """Part of a processor."""
    before, started = processor_s(process), time.monotonic()
    await asyncio.sleep(span_s)
    return (processor_s(process) - before) / (time.monotonic() - started)


async def test_a_waiting_request_takes_no_processor_time(figure: Figure) -> None:
    """And is told apart in /metrics."""
    with Fleet(
        "http://127.0.0.1:1/api/v1",
        None,
        {"acme": {}},
        gateways=1,
        workers=1,
        rates={"*": "1/min"},
        upstream={"deadline_s": 1_000_000},
    ) as fleet:
        (port,), process = fleet.ports, fleet.gateways[0].pid
        idle = await used(process, 1.0)
        async with connected([port] * REQUESTS) as connections:
            for connection in connections:
                connection.send("POST", PATH, fleet.keys["acme"], image_request())
            await asyncio.sleep(2)
            waiting = await used(process, 2.0)
            metrics = (await get(port, "/metrics")).body
    found = [line for line in metrics.splitlines() if line.startswith("gateway_queue_length{")]
    figure(f"{REQUESTS} waiting: {waiting:.1%} of a processor, {idle:.1%} when idle")
    # One has had its slot, found nobody there and waits for another.
    assert found == [f'gateway_queue_length{{model="qwen-image-2.0"}} {REQUESTS:.1f}']
    assert waiting < idle + IDLE


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
