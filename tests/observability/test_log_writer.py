"""Whatever becomes of the log: no request fails or waits for it, and lines stay whole."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.operations.site import document, write
from tests.running import ACME, ROOT
from tests.simulated import SimulatedDashScope

pytestmark = pytest.mark.slow

SERVE: Final = (sys.executable, "-m", "gateway", "serve", "--port", "0", "--config")
LINES: Final = """
import multiprocessing, os, sys
import structlog
from gateway.observability.logs import configure_logs
configure_logs(json_lines=True)
def work(name):
    for number in range(200):
        text = name * (9_000 * (number % 2))
        structlog.get_logger().info("line", by=name, number=number, text=text)
structlog.get_logger().info("parent")
workers = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in "abcd"]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""


@contextmanager
def full() -> Iterator[int]:
    """A device that is always full."""
    file = os.open("/dev/full", os.O_WRONLY)
    yield file
    os.close(file)


@contextmanager
def gone() -> Iterator[int]:
    """A pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def unread() -> Iterator[int]:
    """A pipe that has no room, and a reader that never makes any."""
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, b"x" * size)
    yield writer
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("broken", [full, gone, unread])
def test_a_log_that_cannot_be_written_costs_no_request(
    broken: Callable[[], AbstractContextManager[int]], simulator: SimulatedDashScope, tmp_path: Path
) -> None:
    file = write(tmp_path / "gateway.yaml", document(simulator.base_url))
    with broken() as log:
        gateway = subprocess.Popen(
            [*SERVE, str(file)], stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True
        )
        try:
            assert gateway.stdout is not None
            url = gateway.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
                for model, status in (("qwen-image-2.0", 200), ("none", 404)):
                    answer = client.post(
                        "/v1/images/generations",
                        json={"prompt": "a fox", "model": model},
                        headers={"authorization": f"Bearer {ACME}"},
                    )
                    assert answer.status_code == status
                assert client.get("/healthz").status_code == 200
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(15) == 0
        finally:
            with suppress(ProcessLookupError):
                gateway.kill()
            gateway.communicate()


def test_lines_of_several_processes_stay_whole_and_in_order() -> None:
    """Through a pipe that is slowly read, lines of more than it keeps together among them."""
    done = subprocess.run(
        [sys.executable, "-c", LINES], stderr=subprocess.PIPE, cwd=ROOT, check=True, timeout=60
    )

    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in told].count("parent") == 1
    for name in "abcd":
        assert [line["number"] for line in told if line.get("by") == name] == [*range(200)]


def test_lines_beyond_what_is_held_are_counted() -> None:
    """A reader that comes back reads what was held, in order, and how much was not."""
    reader, writer = os.pipe()
    script = (
        "import structlog, sys\n"
        "from gateway.observability.logs import configure_logs\n"
        "configure_logs(json_lines=True)\n"
        "texts = {f'text_{part}': 'x' * 1_000 for part in range(30)}\n"
        "for number in range(1000):\n"
        "    structlog.get_logger().info('line', number=number, **texts)\n"
        "print('logged', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
        cwd=ROOT,
        text=True,
    )
    os.close(writer)
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    read: list[bytes] = []
    with os.fdopen(reader, "rb") as log:
        thread = threading.Thread(target=lambda: read.extend(log))
        thread.start()
        process.communicate("", timeout=20)
        thread.join(20)

    told = [json.loads(line) for line in read]
    numbers = [line["number"] for line in told if line["event"] == "line"]
    assert numbers == [*range(len(numbers))]
    assert 300 < len(numbers) < 1000
    assert sum(line["lines"] for line in told if line["event"] == "log_lines_lost") == 1000 - len(
        numbers
    )
