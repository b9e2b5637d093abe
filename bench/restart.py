"""How long a gateway takes to start and, idle, to end.

    .venv/bin/python bench/restart.py [--runs 5] [--goal 1.5]

Starts `gateway serve` with one worker and the in-process store so many times, and measures from the
start of the process to the first 200 of /readyz, and from SIGTERM to its end with `lame_duck_s: 0`.
The exit status is 1 when the median start takes longer than the goal.
"""
# ruff: noqa: INP001, S603, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--goal", type=float, default=1.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.yaml"
        runs = [one_run(path) for _ in range(options.runs)]
    ready_s = statistics.median(start for start, _ in runs)
    end_s = statistics.median(end for _, end in runs)
    print(
        f"ready after {ready_s:.2f} s (goal {options.goal} s), ended after {end_s:.2f} s; medians"
    )
    return 0 if ready_s <= options.goal else 1


def one_run(path: Path) -> tuple[float, float]:
    """Seconds to readiness, and to the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    account = {"name": "one", "base_url": "https://dashscope.example/api/v1", "api_key": "none"}
    listen = {"host": "127.0.0.1", "port": port}
    content = {"listen": listen, "accounts": [account], "tenants": [], "lame_duck_s": 0}
    path.write_text(json.dumps(content))
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(path)]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not is_ready(port):
            time.sleep(0.005)
        ready = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait()
    return ready - started, time.perf_counter() - ready


def is_ready(port: int) -> bool:
    address = f"http://127.0.0.1:{port}/readyz"
    with suppress(OSError), urllib.request.urlopen(address, timeout=1) as answer:
        return bool(answer.status == 200)
    return False


if __name__ == "__main__":
    sys.exit(main())
