"""The shared store on Redis: one Lua script per decision, at the server's time.

Keys, all with a time to live: `{t:<tenant>}` limits and own generations, `{g:<group>}` those of a
cache group, `{m:<model>}` slots, and `workers`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, tzinfo
from secrets import token_hex

from gateway.domain.clock import ZoneClock
from gateway.store.availability import Share
from gateway.store.generations import Entry
from gateway.store.limits import Limits, Reservation, TakeRequest
from gateway.store.pacing import SlotRequest
from gateway.store.redis.eviction import eviction_warning
from gateway.store.redis.pacing import RedisPace
from gateway.store.redis.pipeliner import Timeouts
from gateway.store.redis.requests import RedisRequests
from gateway.store.redis.scripts import LatencyObserver, ignore_latency, load, server_clock
from gateway.store.requests import EnterRequest

__all__ = ["RedisStore", "Timeouts"]

HEARTBEAT = load("heartbeat")


class RedisStore(RedisRequests, RedisPace):
    """Connects on first use, and again by itself. `took` is called with the time of each call."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:",
        timeouts: Timeouts | None = None,
        zone: tzinfo = UTC,
        took: LatencyObserver = ignore_latency,
        clock_us: Callable[[], int] = server_clock,
    ) -> None:
        """Raises ValueError for a URL of no known form."""
        super().__init__(url, prefix=prefix, timeouts=timeouts, took=took, clock_us=clock_us)
        self._zone = ZoneClock(zone)

    @property
    def failures(self) -> list[str]:
        """What is taken to be away now, in words; sends nothing."""
        return self._servers.failures

    @property
    def reconnects(self) -> int:
        return self._servers.reconnects

    async def eviction_warning(self) -> str | None:
        """Why the server may evict limits and leases; None if it does not, or cannot be asked."""
        return await eviction_warning(self._servers)

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:
        args = {"worker": worker, "ttl_ms": ttl_ms}
        index, workers = await self._run(HEARTBEAT, (f"{self._prefix}workers",), args)
        return Share(index, workers)

    async def probe(self) -> None:
        """Run a script per kind of keys, which writes nothing; see `scripts.ADVICE`."""
        nobody = f"probe-{token_hex(8)}"
        for scope in (f"tenant:{nobody}", f"group:{nobody}"):
            entry = Entry(
                scope=scope,
                request=nobody,
                plan_hash="",
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
