from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from gateway.simulator.app import create_app
from gateway.simulator.settings import Settings
from tests.simulated import SimulatedDashScope
from tests.simulator.calls import KEY, SYNC, request

# A shell's background job has SIGINT ignored, and so has all that it starts.
PROGRAM = """
import signal, socket, sys
from gateway.simulator.app import serve
signal.signal(signal.SIGINT, signal.default_int_handler)
serve(sock=socket.socket(fileno=int(sys.argv[1])))
"""


@contextmanager
def served(listening: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """`serve` in a process of its own, as the command runs it."""
    number = listening.fileno()
    command = [sys.executable, "-c", PROGRAM, str(number)]
    process = subprocess.Popen(command, pass_fds=[number])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop(wanted: signal.Signals) -> None:
    """With the lifelike settings unless others are given; it takes a signal at its word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with served(listening) as process:
            state = httpx.get(f"http://127.0.0.1:{port}/_simulator/state", trust_env=False)
            assert state.json()["settings"]["latency_s"] == 1.5
            process.send_signal(wanted)
            assert process.wait(timeout=10) != 0


def test_it_starts_quickly() -> None:
    """Tests start many: the first answer within a second, the best of three on a busy machine."""
    took = []
    for _ in range(3):
        started = time.perf_counter()
        with SimulatedDashScope() as sim:
            sim.state()
            took.append(time.perf_counter() - started)
    assert min(took) < 1


def test_two_simulators_are_two_vendors() -> None:
    """Nothing is shared between them."""
    with SimulatedDashScope() as one, SimulatedDashScope(latency_s=3) as other:
        one.fault("hang")
        assert other.state()["faults_waiting"] == []
        assert one.state()["settings"]["latency_s"] == 0
        assert other.state()["settings"]["latency_s"] == 3


async def test_another_server_can_run_it_all_but_the_resets() -> None:
    """In process, say: what should be cut is then a 500."""
    app: Any = create_app(Settings())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sim/api/v1") as client:

        async def status(prompt: str) -> int:
            body = request(prompt, "qwen-image", {})
            return (await client.post(SYNC, headers=KEY, json=body)).status_code

        assert await status("a cat") == 200
        assert await status("a cat [simulate:reset_before]") == 500
