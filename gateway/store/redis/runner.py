"""What the parts of the Redis store share: keys, and the way to run a script."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gateway.store.redis.pipeliner import Reply, Timeouts
from gateway.store.redis.router import connect
from gateway.store.redis.scripts import Args, Script, run
from gateway.store.redis.timing import LatencyObserver, ignore_latency, timed

KINDS = {"tenant": "t", "group": "g"}


class ScriptRunner:
    """`took` is called with the time of each call. `clock_offset_ms` is for tests only."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gateway:",
        timeouts: Timeouts | None = None,
        took: LatencyObserver = ignore_latency,
        clock_offset_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """Raises ValueError for a URL of no known form."""
        self._servers = connect(url, timeouts or Timeouts())
        self._prefix = prefix
        self._took = took
        self._offset_ms = clock_offset_ms

    async def _run(
        self, script: Script, keys: tuple[str, ...], args: Args, blobs: Sequence[bytes] = ()
    ) -> Reply:
        asked = run(self._servers, script, keys, self._offset_ms(), args, blobs)
        return await timed(self._took, script.name, asked)

    async def _run_in(
        self,
        scope: str,
        script: Script,
        args: Args,
        named: Iterable[str] = (),
        blobs: Sequence[bytes] = (),
    ) -> Reply:
        return await self._run(script, self._scope_keys(scope, named), args, blobs)

    def _scope_keys(self, scope: str, named: Iterable[str] = ()) -> tuple[str, ...]:
        """`named`: those of a scope's keys that are known before the call."""
        kind, _, name = scope.partition(":")
        base = f"{self._prefix}{{{KINDS.get(kind, kind)}:{name}}}:"
        return (base + "cached", *(base + key for key in named))

    def _tenant_keys(self, tenant: str) -> tuple[str, ...]:
        base = f"{self._prefix}{{t:{tenant}}}:"
        return (
            base + "window",
            base + "leases",
            base + "detached",
            base + "reservations",
            base + "gone",
            base + "day",
            base + "month",
        )

    async def ping(self) -> None:
        await self._servers.ping()

    async def aclose(self) -> None:
        await self._servers.aclose()
