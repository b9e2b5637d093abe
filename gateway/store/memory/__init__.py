"""The in-process store: one worker, the same decisions as the shared one."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.store.base import Share
from gateway.store.memory.generations import MemoryFlights
from gateway.store.memory.limits import MemoryLimits
from gateway.store.memory.pacing import MemoryPace

__all__ = ["MemoryStore"]


class MemoryStore(MemoryLimits, MemoryPace, MemoryFlights):
    """Nothing in it awaits, so every operation is atomic. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        MemoryLimits.__init__(self, clock)
        MemoryPace.__init__(self, clock)
        MemoryFlights.__init__(self, clock)

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:  # noqa: ARG002 - there is only one
        return Share()

    async def ping(self) -> None:
        return

    async def aclose(self) -> None:
        return
