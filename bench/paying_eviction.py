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

from gateway.observability.context import ClientOutcome  # noqa: E402
from gateway.store.availability import StoreUnavailable  # noqa: E402 - after the path
from gateway.store.generations import Completion, Entry, Lead, State  # noqa: E402
from gateway.store.limits import Limits, Reservation, Settlement, TakeRequest  # noqa: E402
from gateway.store.redis import RedisStore, Timeouts  # noqa: E402
from gateway.store.redis.eviction import eviction_warning  # noqa: E402
from gateway.store.requests import End, EnterRequest, Leave  # noqa: E402
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
        await store.enter(request("finished", 4))
        await store.leave(left("finished", 4))
        await store.enter(request("running", 2))
        started = time.perf_counter()
        written = await fill(store, 2 * megabytes * 1024 * 1024)
        took_s = time.perf_counter() - started
        warning = await eviction_warning(store._servers)  # noqa: SLF001
        levels = (await store.usage("bench", LIMITS)).levels
        (status,) = await store.poll("tenant:bench", ["running"])
        await store.aclose()
    assert levels.day is not None
    assert levels.concurrent is not None
    day, leases = 50 - levels.day.remaining, 10 - levels.concurrent.remaining
    is_kept = (day, leases, status.state) == (6, 1, State.RUNNING)
    print(
        f"{policy:16} {written / 1024**2:6,.0f} MiB written in {took_s:4.1f} s; "
        f"of the day {day} of 6, leases {leases} of 1, generation {status.state}; "
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
        place = (await store.enter(request(name, 1, tenant="filler"))).place
        if isinstance(place, Lead):
            result = Completion(
                os.urandom(ENTRY_BYTES), DAY_MS, DAY_MS, cache_key=name, cache_ms=DAY_MS
            )
            settlement = Settlement("filler", name, "model", 1, 0)
            await store.end(
                End(
                    leadership=place.leadership,
                    retry_key=None,
                    outcome=result,
                    settlement=settlement,
                )
            )
            await store.leave(left(name, 1, tenant="filler"))
    except StoreUnavailable:
        return False
    return True


def request(name: str, images: int, tenant: str = "bench") -> EnterRequest:
    limits = LIMITS if tenant == "bench" else Limits()
    take = TakeRequest(tenant, limits, Reservation(name, "model", images, 0), DAY_MS)
    wanted = Entry(
        scope=f"tenant:{tenant}", request=name, plan_hash="plan", images=images, cache_key=name
    )
    return EnterRequest(entry=wanted, take=take, lead_ms=DAY_MS)


def left(name: str, images: int, tenant: str = "bench") -> Leave:
    settlement = Settlement(tenant, name, "model", images, 0)
    return Leave(settlement=settlement, outcome=ClientOutcome.DELIVERED, scope=f"tenant:{tenant}")


if __name__ == "__main__":
    raise SystemExit(main())
