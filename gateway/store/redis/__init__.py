"""The shared store on Redis: one Lua script per decision, at the server's time.

Keys, all with a time to live, those of one call in one cluster slot:

    <prefix>{t:<tenant>}:…  a tenant's limits (`limits`) and its own generations (`generations`)
    <prefix>{g:<group>}:…   the generations of a cache group
    <prefix>{m:<model>}:…   slots (`pacing`)
    <prefix>workers
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, tzinfo
from secrets import token_hex

from gateway.store.availability import Share
from gateway.store.calendar import ZoneClock
from gateway.store.generations import Entry
from gateway.store.limits import Limits, Reservation, TakeRequest
from gateway.store.pacing import SlotRequest
from gateway.store.redis.eviction import eviction_warning
from gateway.store.redis.pacing import RedisPace
from gateway.store.redis.pipeliner import Timeouts
from gateway.store.redis.requests import RedisRequests
from gateway.store.redis.scripts import load
from gateway.store.redis.timing import LatencyObserver, ignore_latency
from gateway.store.requests import EnterRequest

__all__ = ["RedisStore", "Timeouts"]

HEARTBEAT = load("heartbeat")


class RedisStore(RedisRequests, RedisPace):
    """Connects when first used, and again by itself.

    `took` is told how long each call was. Days and months are those of `zone`. `clock_offset_ms` is
    for tests only.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:",
        timeouts: Timeouts | None = None,
        zone: tzinfo = UTC,
        took: LatencyObserver = ignore_latency,
        clock_offset_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """Raises ValueError for a URL of no known form."""
        super().__init__(
            url, prefix=prefix, timeouts=timeouts, took=took, clock_offset_ms=clock_offset_ms
        )
        self._zone = ZoneClock(zone)

    @property
    def failures(self) -> list[str]:
        """What is taken to be away at this moment, in words; nothing is asked."""
        return self._servers.failures

    @property
    def reconnects(self) -> int:
        return self._servers.reconnects

    async def eviction_warning(self) -> str | None:
        """Why the server may forget limits and leases, if it may; None if it cannot be asked."""
        return await eviction_warning(self._servers)

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        args = {"worker": worker, "ttl_ms": ttl_ms}
        index, workers = await self._run(HEARTBEAT, (f"{self._prefix}workers",), args)
        return Share(index, workers)

    async def probe(self) -> None:
        """Of each kind of keys, a script is run that finds nothing and writes nothing.

        A refused script says what is set up wrong: see `scripts.ADVICE`.
        """
        nobody = f"probe-{token_hex(8)}"
        for scope in (f"tenant:{nobody}", f"group:{nobody}"):
            entry = Entry(
                scope=scope,
                request=nobody,
                plan="",
                images=0,
                cache_key=nobody,
                retry_key=nobody,
                is_retry=True,
                only_if_cached=True,
            )
            take = TakeRequest(nobody, Limits(), Reservation(nobody, "", 0, 0))
            await self.enter(EnterRequest(entry=entry, take=take, lead_ms=1))
            await self.poll(scope, [nobody])
        await self.claim(SlotRequest(nobody, nobody, (), {}))
        await self.heartbeat(nobody, 0)
