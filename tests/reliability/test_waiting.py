"""Requests that wait for a slot cost memory and nothing else; bench/waiting.py has the figure."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.reliability.client import PATH, connected, get, image_request
from tests.reliability.fleet import Fleet

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


async def test_a_waiting_request_takes_no_processor_time(figure: Callable[[str], None]) -> None:
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
