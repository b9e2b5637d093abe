"""How much of Redis' memory a generation takes, by what is remembered of it.

    .venv/bin/python bench/redis_memory.py [--generations 2000] [--images 1]

Starts Redis, a pretend vendor and a gateway of two workers, and has so many different images made
of each kind. What Redis uses more afterwards (used_memory), divided by their number, is the figure.
"""
# ruff: noqa: INP001, T201 - a program that measures others and prints

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from redis import Redis

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.operations.site import IMAGE, PATH, Site, session, tenant
from tests.redis_server import RedisServer
from tests.running import ACME
from tests.simulated import SimulatedDashScope

KINDS: dict[str, tuple[str, bool, bool]] = {
    "plain": ("without a seed: for a retry, one to ten minutes", False, False),
    "seeded": ("with a seed: in the cache, up to 24 h", True, False),
    "keyed": ("with an Idempotency-Key: 24 h", False, True),
}
"""What is printed of each, and whether its requests have a seed and a key."""
AT_ONCE = 20
WARM_UP = 200
LIMITS = {"requests_per_minute": 1_000_000, "images_per_day": 1_000_000, "spend_per_month": "9999"}


async def generate(url: str, kind: str, numbers: range, images: int) -> None:
    """A request of a kind for each number."""
    _, seeded, keyed = KINDS[kind]
    places = asyncio.Semaphore(AT_ONCE)

    async def one(client: aiohttp.ClientSession, which: int) -> None:
        body: dict[str, Any] = {**IMAGE, "prompt": f"{kind} {which}", "n": images}
        if seeded:
            body["seed"] = 7
        headers = {"idempotency-key": f"{kind}-{which}"} if keyed else {}
        async with places, client.post(url + PATH, json=body, headers=headers) as answer:
            await answer.read()
            answer.raise_for_status()

    async with session() as client:
        await asyncio.gather(*(one(client, which) for which in numbers))


def main() -> None:
    """Start everything, generate, look at Redis."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--generations", type=int, default=2000)
    parser.add_argument("--images", type=int, default=1)
    options = parser.parse_args()
    with ExitStack() as stack:
        vendor = stack.enter_context(SimulatedDashScope(render="plain"))
        redis = stack.enter_context(RedisServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        site = Site(folder, vendor.base_url, redis.url)
        site.write(tenants=[tenant("acme", ACME, limits=LIMITS, cache={"mode": "seeded"})])
        gateway = stack.enter_context(site.start())
        server = stack.enter_context(Redis.from_url(redis.url))
        last = WARM_UP + options.generations
        for kind, (what, _, _) in KINDS.items():
            asyncio.run(generate(gateway.url, kind, range(WARM_UP), options.images))
            before = server.info("memory")["used_memory"]
            asyncio.run(generate(gateway.url, kind, range(WARM_UP, last), options.images))
            each = (server.info("memory")["used_memory"] - before) / options.generations
            print(f"{each / 1024:5.2f} KiB  {what}")


if __name__ == "__main__":
    main()
