"""The in-process store: one worker, the same decisions as the shared one."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, tzinfo

from gateway.store.availability import Share
from gateway.store.memory.generations import GENERATIONS_MAX, MemoryGenerations
from gateway.store.memory.limits import MemoryLimits
from gateway.store.memory.pacing import MemoryPace
from gateway.store.memory.requests import MemoryRequests

__all__ = ["MemoryStore"]


class MemoryStore(MemoryRequests, MemoryPace):
    """Nothing in it awaits, so every operation is atomic. `clock` gives Unix seconds."""

    reconnects = 0

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        zone: tzinfo = UTC,
        generations_max: int = GENERATIONS_MAX,
    ) -> None:
        MemoryLimits.__init__(self, clock, zone)
        MemoryGenerations.__init__(self, clock, generations_max)
        MemoryPace.__init__(self, clock)

    async def heartbeat(self, worker: str, ttl_ms: int) -> Share:  # noqa: ARG002 - there is only one
        return Share()

    async def ping(self) -> None:
        return

    async def probe(self) -> None:
        return

    async def aclose(self) -> None:
        return
