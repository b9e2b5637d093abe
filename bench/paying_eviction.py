"""A gigabyte of cache entries in a full Redis, under each eviction policy: what is left of limits.

    .venv/bin/python bench/paying_eviction.py [--megabytes 1024] [--policies noeviction,…]

Starts a redis-server of its own for each policy, counts some use of a tenant, lets one generation
run, and writes cache entries until twice the memory was written or the server refuses. A line tells
what the server still knew, and what the gateway's check at its start says. The exit status is 1
when something was lost without a warning.
"""
# ruff: noqa: INP001, S101, T201 - a program that measures and prints

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gateway.store.base import (  # noqa: E402 - after the path
    Limits,
    Reservation,
    Settlement,
    StoreUnavailable,
    TakeRequest,
)
from gateway.store.generations import Ending, Entry, Led, Phase  # noqa: E402
from gateway.store.redis import RedisStore, Timeouts  # noqa: E402
from gateway.store.redis.eviction import eviction_warning  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402

POLICIES = (
    "noeviction,allkeys-lru,allkeys-lfu,allkeys-random,volatile-lru,volatile-ttl,volatile-random"
)
LIMITS = Limits(requests_per_minute=1000, concurrent_requests=10, images_per_day=50)
ENTRY_BYTES = 256 * 1024
DAY_MS = 86_400_000
AT_ONCE = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1024, help="maxmemory")
    parser.add_argument("--policies", default=POLICIES)
    arguments = parser.parse_args()
    kept = [
        asyncio.run(measure(policy, arguments.megabytes))
        for policy in arguments.policies.split(",")
    ]
    return int(not all(kept))


async def measure(policy: str, megabytes: int) -> bool:
    """Whether all was kept, or a warning given."""
    args = ["--maxmemory", f"{megabytes}mb", "--maxmemory-policy", policy]
    with RedisServer(args=args) as server:
        store = RedisStore(server.url, timeouts=Timeouts(10, 10))
        await store.take(ask("finished", 4))
        await store.release(Settlement("bench", "finished", "model", 4, 0))
        await store.take(ask("running", 2))
        await store.begin(entry("leader"), DAY_MS)
        started = time.perf_counter()
        written = await fill(store, 2 * megabytes * 1024 * 1024)
        took_s = time.perf_counter() - started
        warning = await eviction_warning(store._servers)  # noqa: SLF001
        levels = (await store.usage("bench", LIMITS)).levels
        (sight,) = await store.look("tenant:bench", ["leader"])
        await store.aclose()
    assert levels.day is not None
    assert levels.concurrent is not None
    day, leases = 50 - levels.day.remaining, 10 - levels.concurrent.remaining
    is_kept = (day, leases, sight.phase) == (6, 1, Phase.RUNNING)
    print(
        f"{policy:16} {written / 1024**2:6,.0f} MiB written in {took_s:4.1f} s; "
        f"of the day {day} of 6, leases {leases} of 1, generation {sight.phase}; "
        f"{'warns' if warning else 'no warning'}",
        flush=True,
    )
    return is_kept or warning is not None


async def fill(store: RedisStore, most: int) -> int:
    """Bytes written until the server refuses."""
    written = 0
    while written < most:
        names = [f"filler-{written}-{number}" for number in range(AT_ONCE)]
        results = await asyncio.gather(*(put(store, name) for name in names))
        written += sum(results) * ENTRY_BYTES
        if not all(results):
            break
    return written


async def put(store: RedisStore, name: str) -> bool:
    """A cached result; False if it was refused."""
    try:
        begun = await store.begin(entry(name), 60_000)
        if isinstance(begun, Led):
            ending = Ending(
                os.urandom(ENTRY_BYTES), DAY_MS, DAY_MS, cache_key=name, cache_ms=DAY_MS
            )
            await store.finish(begun.claim, ending)
    except StoreUnavailable:
        return False
    return True


def ask(name: str, images: int) -> TakeRequest:
    return TakeRequest("bench", LIMITS, Reservation(name, "model", images, 0), DAY_MS)


def entry(name: str) -> Entry:
    return Entry(scope="tenant:bench", request=name, plan="plan", images=1, cache_key=name)


if __name__ == "__main__":
    raise SystemExit(main())
