"""Image bytes on Redis, in blocks: `<prefix>{b:<scope>}:ends|sizes|b:<id>:<index>|t:<random>`."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex

from redis.exceptions import ResponseError

from gateway.store.availability import StoreUnavailable
from gateway.store.images import ImagePlace, ImageStats
from gateway.store.redis.pipeliner import Reply, Timeouts
from gateway.store.redis.router import connect
from gateway.store.redis.scripts import (
    Args,
    LatencyObserver,
    Script,
    ignore_latency,
    load,
    run,
    server_clock,
    timed,
)

KEEP = load("images/keep")
SIZE = load("images/size")
STATS = load("images/stats")

BLOCK_BYTES = 256 * 1024
"""Bounds memory on both sides and the wait of other commands."""
BLOCKS_TTL_MS = 60_000
"""How long blocks wait for the next one."""
BULK = Timeouts(connect_s=0.5, command_s=0.5)


class RedisImages:
    """Connects on first use, and again by itself. `clock_us` is for tests only."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:",
        timeouts: Timeouts = BULK,
        took: LatencyObserver = ignore_latency,
        clock_us: Callable[[], int] = server_clock,
    ) -> None:
        """Raises ValueError for a URL of no known form."""
        self._servers = connect(url, timeouts)
        self._prefix = prefix
        self._took = took
        self._clock_us = clock_us

    async def put_image(
        self, place: ImagePlace, image: bytes | memoryview, ttl_ms: int, budget: int
    ) -> bool:
        if len(image) > budget:
            return False
        base = self._base(place.scope)
        blocks = f"{base}t:{token_hex(8)}"
        view = memoryview(image)
        for start in range(0, len(view), BLOCK_BYTES):
            await self._call(blocks, "SETRANGE", start, bytes(view[start : start + BLOCK_BYTES]))
            await self._call(blocks, "PEXPIRE", BLOCKS_TTL_MS)
        args = {
            "member": _member(place),
            "size": len(view),
            "ttl_ms": ttl_ms,
            "budget": budget,
        }
        return bool(await self._run(KEEP, place.scope, args, blocks))

    async def get_image(self, place: ImagePlace) -> bytes | None:
        name = f"{self._base(place.scope)}b:{_member(place)}"
        size = await self._run(SIZE, place.scope, {"member": _member(place)}, name)
        blocks = [
            await self._call(name, "GETRANGE", start, start + BLOCK_BYTES - 1)
            for start in range(0, size, BLOCK_BYTES)
        ]
        image = b"".join(blocks)
        return image if image and len(image) == size else None

    async def image_stats(self, scope: str) -> ImageStats:
        images, size = await self._run(STATS, scope, {"remove": False})
        return ImageStats(images, size)

    async def purge_images(self, scope: str) -> int:
        images, _ = await self._run(STATS, scope, {"remove": True})
        return int(images)

    async def ping(self) -> None:
        await self._servers.ping()

    async def aclose(self) -> None:
        await self._servers.aclose()

    def _base(self, scope: str) -> str:
        return f"{self._prefix}{{b:{scope}}}:"

    async def _run(self, script: Script, scope: str, args: Args, *names: str) -> Reply:
        base = self._base(scope)
        keys = (f"{base}ends", f"{base}sizes", *names)
        asked = run(self._servers, script, keys, self._clock_us(), args)
        return await timed(self._took, script.name, asked)

    async def _call(self, key: str, command: str, *args: int | bytes) -> Reply:
        asked = self._servers.call(key, (command, key, *args))
        reply = await timed(self._took, command.lower(), asked)
        if isinstance(reply, ResponseError):
            raise StoreUnavailable(f"Redis: {reply}")
        return reply


def _member(place: ImagePlace) -> str:
    return f"{place.id}:{place.index}"
