"""How many requests a gateway serves with one processor, and how long each takes.

    .venv/bin/python bench/throughput.py [--connections 64] [--seconds 5] [--redis URL]

Starts the simulator, which answers at once, and a gateway with one worker, and sends requests on
so many kept connections, each as soon as the one before is answered: first requests that all go
through to the vendor, then one request again and again, which the cache answers. Client and
simulator take processor time of their own, so beside the rate seen the program prints the time
that the gateway's process used for each request, and the rate that follows from it: what one
processor does that nobody else uses.
"""
# ruff: noqa: INP001, S310, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
import urllib.request
from itertools import count
from pathlib import Path

from delivery import GATEWAY, ROOT, free_port, opener, started

from gateway.tenants.keys import hash_key, new_key

KEY = new_key()
SEEDS = count()
CONFIG = """\
listen: {{host: 127.0.0.1, port: 0}}
accounts:
  - {{name: one, base_url: "{simulator}/api/v1", api_key: none, rates: {{"*": unlimited}}}}
images: {{allowed_hosts: ["127.0.0.1"], allow_http: true}}
tenants:
  - name: bench
    keys: [{{hash: "{key_hash}"}}]
    limits: {{requests_per_minute: 10000000, images_per_minute: 10000000}}
    cache: {{mode: {mode}}}
"""


def main() -> int:
    arguments = read_arguments()
    with started([*GATEWAY, "simulate", "--port", str(free_port())]) as (simulator, _):
        answer_at_once(simulator)
        measure(arguments, simulator, "through to the vendor", mode="off")
        measure(arguments, simulator, "out of the cache", mode="seeded")
    return 0


def answer_at_once(simulator: str) -> None:
    settings = json.dumps({"latency_s": 0, "render": "plain"}).encode()
    headers = {"content-type": "application/json"}
    url = f"{simulator}/_simulator/settings"
    opener().open(urllib.request.Request(url, settings, headers, method="PUT")).read()


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--redis", metavar="URL", help="the store; by default in process")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, simulator: str, what: str, mode: str) -> None:
    """One gateway's figures, printed."""
    redis = f"redis: {{url: {json.dumps(arguments.redis)}}}\n" if arguments.redis else ""
    content = redis + CONFIG.format(simulator=simulator, key_hash=hash_key(KEY), mode=f'"{mode}"')
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "gateway.yaml"
        config.write_text(content)
        with started([*GATEWAY, "serve", "--config", str(config)]) as (gateway, pid):
            port = int(gateway.rpartition(":")[2])
            asyncio.run(load(port, arguments.connections, 1.0, mode))
            used_s, started_at = processor_s(pid), time.perf_counter()
            took = asyncio.run(load(port, arguments.connections, arguments.seconds, mode))
            used_s, wall_s = processor_s(pid) - used_s, time.perf_counter() - started_at
    took.sort()
    each_us = 1e6 * used_s / len(took)
    print(
        f"{what}: {len(took) / wall_s:,.0f}/s seen, p50 {1000 * took[len(took) // 2]:.1f} ms, "
        f"p99 {1000 * took[len(took) * 99 // 100]:.1f} ms; "
        f"{each_us:.0f} us of processor each: {1e6 / each_us:,.0f}/s"
    )


async def load(port: int, connections: int, seconds: float, mode: str) -> list[float]:
    """How long each request took."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(ask(port, until, mode, took) for _ in range(connections)))
    return took


async def ask(port: int, until: float, mode: str, took: list[float]) -> None:
    """Requests on one connection; other seeds where each shall be a generation of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (now := time.perf_counter()) < until:
        writer.write(request(next(SEEDS) if mode == "off" else 7))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(head.decode())
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        took.append(time.perf_counter() - now)
    writer.close()


def request(seed: int) -> bytes:
    body = {"model": "qwen-image-2.0", "prompt": "a fox in the snow", "seed": seed}
    content = json.dumps(body).encode()
    return (
        f"POST /v1/images/generations HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    ).encode() + content


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main())
